"""Task-specific progressive dropping of experts during training: the paper's baseline "task-specific"."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.compression.factorise import MergedModel
from mcsmoe.families import Family, MoELayer
from mcsmoe.tasks.batches import Batch
from mcsmoe.training.loop import Fit, Losses
from mcsmoe.training.together import counted_tokens

UNTIL = 0.5
"""Share of the training steps over which experts are dropped (Chen et al.: the first half)."""


class ExpertDropper:
    """Drops the least used experts one after another (Chen et al., arXiv 2206.00277).

    The number of experts in all layers but `excluded` falls evenly to `keep` over the first half of the training.
    The expert with the smallest share of its layer's selections by real tokens since the last drop goes first; on
    ties, the one in the later layer, then the one with the higher id. Every layer keeps at least one. The router
    logit of a dropped expert is −∞ from then on, so its former tokens select among the experts that are left.
    """

    def __init__(
        self,
        model: MergedModel,
        family: Family,
        layers: Collection[MoELayer],
        keep: int,
        excluded: Collection[str],
        reduce: Callable[[Tensor], Tensor] = lambda counts: counts,
    ) -> None:
        """Take a `model` in which no two experts share an entry; `reduce` sums counts [E] over processes."""
        self._family, self._keep, self._reduce = family, keep, reduce
        self._layers = [layer for layer in layers if layer.name not in excluded]
        self._mlps = {layer.name: model.sparse_mlps()[layer.name] for layer in self._layers}
        self._counts = {layer.name: torch.zeros(layer.experts, dtype=torch.int64) for layer in self._layers}
        self._sums = {name: counts.clone() for name, counts in self._counts.items()}
        self._masks: dict[str, Tensor] = {}
        self._total = self._left = sum(layer.experts for layer in self._layers)
        self._end = 1

    @contextmanager
    def dropping(self, fit: Fit) -> Iterator[None]:
        """Count selections in each forward pass of `fit`, drop after its steps, remove dropped experts at the end."""
        self._end = max(1, round(UNTIL * fit.steps))
        loss, fit.hooks, fit.figures = fit.loss, self, lambda: {"experts": self._left}

        def counted(model: nn.Module, batch: Batch) -> Losses:
            self._masks = {stack: mask.flatten() for stack, mask in counted_tokens(batch, self._family.causal).items()}
            return loss(model, batch)

        fit.loss = counted
        with ExitStack() as stack:
            for layer in self._layers:
                hook = self._mlps[layer.name].router.register_forward_hook(self._count(layer))
                stack.callback(hook.remove)
            yield
        self._remove(fit.model)

    def before_step(self) -> None:
        """Do nothing: gradients are left alone."""

    def after_step(self, step: int) -> None:
        """Drop experts until as many are left as there should be after optimiser step `step` (from 1)."""
        gone = (self._total - self._keep) * min(step, self._end) // self._end
        self._drop_to(self._total - gone)

    def tensors(self) -> dict[str, Tensor]:
        """Selections since the last drop, over all processes; which experts are alive is the model's to know."""
        self._sum_up()
        return self._sums

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from copies of what `tensors` returned, with a model that is restored already."""
        for name, sums in self._sums.items():
            sums.copy_(tensors[name])
        self._left = sum(int((mlp.expert_map >= 0).sum()) for mlp in self._mlps.values())

    def _sum_up(self) -> None:
        """Add this process's counts, and those of the others, to the sums."""
        for name, counts in self._counts.items():
            self._sums[name] += self._reduce(counts)
            counts.zero_()

    def _count(self, layer: MoELayer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            chosen = self._family.routing(self._mlps[layer.name], output).index[self._masks[layer.stack]]
            self._counts[layer.name] += torch.bincount(chosen.flatten().cpu(), minlength=layer.experts)

        return hook

    @torch.no_grad()
    def _drop_to(self, left: int) -> None:
        if left >= self._left:
            return
        self._sum_up()
        candidates: list[tuple[float, str, int]] = []
        for layer in reversed(self._layers):
            counts = self._sums[layer.name]
            shares = (counts / counts.sum().clamp(min=1)).tolist()
            alive = (self._mlps[layer.name].expert_map >= 0).nonzero().flatten().tolist()
            candidates += [(shares[e], layer.name, e) for e in reversed(alive)]
        for _, name, e in sorted(candidates, key=lambda candidate: candidate[0]):  # stable: ties in the order above
            expert_map = self._mlps[name].expert_map
            if self._left > left and (expert_map >= 0).sum() > 1:
                expert_map[e] = -1
                self._left -= 1
        for each in self._sums.values():
            each.zero_()

    @torch.no_grad()
    def _remove(self, model: MergedModel) -> None:
        """Remove dropped experts from the model's stacks and renumber the index map: [0, -1, 2] → [0, -1, 1]."""
        for name in self._mlps:
            mlp = model.sparse_mlps()[name]
            kept = mlp.expert_map >= 0
            slots = mlp.expert_map[kept]
            for module in mlp.experts.children():
                if isinstance(getattr(module, "weight", None), Tensor):
                    module.weight = nn.Parameter(module.weight[slots])
            mlp.expert_map[kept] = torch.arange(len(slots), device=slots.device)
            mlp.experts.num_experts = len(slots)
        model.update_config()
