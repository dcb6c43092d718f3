"""What compression needs of a merged model, whatever its family: stacked experts, and factorised ones."""

from collections.abc import Mapping
from typing import Any, Protocol, cast

from torch import Tensor, nn


class Factorised(Protocol):
    """K linear maps U_e V_e + S_e, of which some rows of S are kept, sorted by (expert, output neuron).

    u: [K, out, r]; v: [K, r, in]; rows: [n, in]; row_index: [n], the output neuron of each kept row.
    """

    u: nn.Parameter
    v: nn.Parameter
    rows: nn.Parameter
    row_index: Tensor

    def row_expert(self) -> Tensor:
        """The expert that owns each kept row, [n]."""

    def keep_rows(self, mask: Tensor) -> None:
        """Drop the rows whose output neuron is False in mask [K, out]."""


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


def factorised_weights(model: MergedModel) -> dict[str, Factorised]:
    """Factorised expert weights by "layer.weight", in order of the forward pass."""
    return {
        f"{layer}.{name}": cast(Factorised, module)
        for layer, mlp in model.sparse_mlps().items()
        for name, module in mlp.experts.named_children()
        if hasattr(module, "row_ptr")
    }
