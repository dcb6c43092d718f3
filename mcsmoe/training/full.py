"""The loss of fine-tuning: cross-entropy plus, for each sparse layer, what keeps its router healthy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.architectures.layer import Family, MoELayer
from mcsmoe.params import Finetune
from mcsmoe.routing.watch import real_tokens
from mcsmoe.tasks.batches import IGNORED, Batch, model_inputs
from mcsmoe.training.loop import Losses
from mcsmoe.training.router_losses import balance_loss, z_loss


class FullLoss:
    """Cross-entropy per label token + z-loss and balance loss, averaged over the sparse layers of the model."""

    def __init__(self, family: Family, layers: Sequence[MoELayer], settings: Finetune) -> None:
        self._family, self._layers, self._settings = family, layers, settings
        self._logits: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Record the router logits of each forward pass of `model` while the context is open."""

        def record(layer: MoELayer) -> Any:
            block = model.get_submodule(layer.path)

            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._logits[layer.name] = self._family.routing(block, output).logits

            return hook

        handles = [
            model.get_submodule(layer.router_path).register_forward_hook(record(layer)) for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, model: nn.Module, batch: Batch, label_tokens: Tensor) -> Losses:
        """Terms `loss`, `task` and, with experts, `router_z` and `balance` of one batch; see `Fit.loss`."""
        causal = self._family.causal
        task = _cross_entropy(model(**model_inputs(batch, causal)).logits, batch["labels"]) / label_tokens
        masks = {stack: mask.flatten() for stack, mask in real_tokens(batch, causal).items()}
        pairs = [(self._logits[layer.name], masks[layer.stack]) for layer in self._layers]
        if not pairs:  # a dense model
            return {"loss": task, "task": task}
        router_z = torch.stack([z_loss(*pair) for pair in pairs]).mean()
        balance = torch.stack([balance_loss(*pair) for pair in pairs]).mean()
        loss = task + self._settings.router_z_loss * router_z + self._settings.balance_loss * balance
        return {"loss": loss, "task": task, "router_z": router_z, "balance": balance}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over label tokens of −log p, in nats, of logits [B, T, V] and labels [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
