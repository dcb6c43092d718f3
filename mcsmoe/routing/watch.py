"""Forward passes over calibration batches with an eye on every sparse layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.architectures.layer import Family, MoELayer, Routing
from mcsmoe.tasks.batches import IGNORED, model_inputs

Batch = Mapping[str, Tensor]
Masks = Callable[[Batch, bool], Mapping[str, Tensor]]
"""(batch, whether the model is causal) → the positions that count, by stack."""
See = Callable[[MoELayer, Tensor, Routing], None]


def real_tokens(batch: Batch, causal: bool) -> dict[str, Tensor]:
    """Positions that are no padding: encoder [B, S] from `attention_mask`, decoder [B, T] from `labels`.

    A decoder position counts when it has a label to predict. A causal model has a decoder only, and reads the
    source with it: there, all of `attention_mask` counts.
    """
    attention = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return {"decoder": attention} if causal else {"encoder": attention, "decoder": batch["labels"] != IGNORED}


def every_token(batch: Batch, causal: bool) -> dict[str, Tensor]:
    """All positions, padding too, as the reference implementation counts them."""
    return {name: torch.ones_like(mask) for name, mask in real_tokens(batch, causal).items()}


@torch.no_grad()
def watch(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    see: See,
    masks: Masks = real_tokens,
) -> None:
    """Call `see(layer, x [T, d], routing of x)` with the T real tokens of each layer and batch.

    The model runs in eval mode (no dropout, no router jitter) and is left in the mode it came in. Nothing
    is kept from one batch to the next.
    """
    training, device = model.training, next(model.parameters()).device
    seen: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}

    def before(layer: MoELayer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[layer.name] = inputs[0]

        return hook

    def after(layer: MoELayer) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            routing, x = family.routing(module, output), seen.pop(layer.name)
            real = kept[layer.stack].flatten().to(x.device)  # [B·S]
            see(
                layer,
                x.flatten(0, -2)[real],  # [T, d]
                Routing(routing.logits[real], routing.index[real], routing.gates[real]),
            )

        return hook

    with ExitStack() as stack:
        stack.callback(model.train, training)
        model.eval()
        for layer in layers:
            block, router = model.get_submodule(layer.path), model.get_submodule(layer.router_path)
            stack.callback(block.register_forward_pre_hook(before(layer)).remove)
            stack.callback(router.register_forward_hook(after(layer)).remove)
        for batch in batches:
            kept.update(masks(batch, family.causal))
            model(**{name: value.to(device) for name, value in model_inputs(batch, family.causal).items()})


def count(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Iterable[Batch],
    masks: Masks = real_tokens,
) -> dict[str, Tensor]:
    """Tokens that select each expert, before any capacity limit, by layer: [E] int64."""
    counts = {layer.name: torch.zeros(layer.experts, dtype=torch.int64) for layer in layers}

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        counts[layer.name] += torch.bincount(routing.index.flatten().cpu(), minlength=layer.experts)

    watch(model, family, layers, batches, see, masks)
    return counts
