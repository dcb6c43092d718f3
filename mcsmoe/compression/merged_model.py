"""What compression needs of a merged model, whatever its family: stacked experts, and factorised ones."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn


class SparsePart(Protocol):
    """S of K linear maps by its kept units (rows, columns or elements): `values` [n, w], sorted by expert and place."""

    values: nn.Parameter

    def keep(self, alive: Tensor) -> None:
        """Drop the units that are False in alive [n]; makes a new parameter `values`."""


class MergedModel(Protocol):
    """A model whose sparse layers hold stacked experts: `layer.experts` has one module a weight."""

    def sparse_mlps(self) -> Mapping[str, Any]:
        """Sparse layers by name, in order of the forward pass."""

    def update_config(self) -> None:
        """Make the configuration tell what the modules hold."""


def stacked_weights(model: MergedModel) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Dense expert weights by "layer.weight" ("encoder.1.wi"): owner, name in it, tensor [K, out, in]."""
    return {
        f"{layer}.{name}": (mlp.experts, name, module.weight)
        for layer, mlp in model.sparse_mlps().items()
        for name, module in mlp.experts.named_children()
        if isinstance(getattr(module, "weight", None), Tensor)
    }


def sparse_parts(model: MergedModel) -> dict[str, SparsePart]:
    """S of the factorised expert weights that have one, by "layer.weight", in order of the forward pass."""
    return {
        f"{layer}.{name}": module.sparse
        for layer, mlp in model.sparse_mlps().items()
        for name, module in mlp.experts.named_children()
        if getattr(module, "sparse", None) is not None
    }
