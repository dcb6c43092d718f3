"""W = U V + S: the best low-rank approximation, and the sparse rest S (LoSparse, arXiv 2306.11222)."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mcsmoe.compression.size import Shape, check_size, rank_of
from mcsmoe.errors import UserError
from mcsmoe.params import Compress


class Prunable(Protocol):
    """The kept units (rows, columns or elements) of S for K experts: `values` [n, w], sorted by expert and place."""

    values: nn.Parameter

    def keep(self, alive: Tensor) -> None:
        """Drop the units that are False in alive [n]; `values` becomes a new parameter."""


class MergedModel(Protocol):
    """A model whose sparse layers hold stacked experts: `layer.experts` has one module per weight."""

    def sparse_mlps(self) -> Mapping[str, Any]:
        """Return the sparse layers by name, in the order of the forward pass."""

    def update_config(self) -> None:
        """Update the configuration to match what the modules hold."""


def stacked_weights(model: MergedModel) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Dense expert weights by "layer.weight": `encoder.1.wi` → (owning module, `wi`, tensor [K, out, in])."""
    return {
        f"{layer}.{name}": (mlp.experts, name, module.weight)
        for layer, mlp in model.sparse_mlps().items()
        for name, module in mlp.experts.named_children()
        if isinstance(getattr(module, "weight", None), Tensor)
    }


def sparse_parts(model: MergedModel) -> dict[str, Prunable]:
    """S of each factorised expert weight that has one, by "layer.weight", in the order of the forward pass."""
    return {
        f"{layer}.{name}": module.sparse
        for layer, mlp in model.sparse_mlps().items()
        for name, module in mlp.experts.named_children()
        if getattr(module, "sparse", None) is not None
    }


Build = Callable[[Tensor, Tensor, Tensor, str], nn.Module]
"""(u [K, out, r], v [K, r, in], s [K, out, in], structure) → the module that computes with u v + the units of s."""


@torch.no_grad()
def factorise(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split weight W [K, out, in] into u [K, out, r] = U_r √Σ_r, v [K, r, in] = √Σ_r V_rᵀ and s = W − u v.

    W = U Σ Vᵀ is the singular value decomposition of each expert, in float32 or better; results have the dtype of the
    weight. u v + s equals W up to rounding. Rank 0 gives empty factors and s = W, bit by bit.
    Raises `ValueError` for a rank below 0 or above min(out, in).
    """
    experts, d_out, d_in = weight.shape
    if not 0 <= rank <= min(d_out, d_in):
        raise ValueError(f"rank {rank} of a weight {[d_out, d_in]}")
    if rank == 0:
        return weight.new_empty(experts, d_out, 0), weight.new_empty(experts, 0, d_in), weight.clone()
    parts = [_factorise_one(matrix, rank) for matrix in weight.unbind(0)]
    u, v, s = (torch.stack(tensors) for tensors in zip(*parts))
    return u, v, s


def _factorise_one(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    precise = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    left, values, right = torch.linalg.svd(precise, full_matrices=False)  # [out, m], [m], [m, in]
    root = values[:rank].sqrt()
    u = (left[:, :rank] * root).to(matrix.dtype)
    v = (root[:, None] * right[:rank]).to(matrix.dtype)
    # Use the rounded factors, so that S corrects their rounding, too.
    s = precise - u.to(precise.dtype) @ v.to(precise.dtype)
    return u, v, s.to(matrix.dtype)


def factorise_model(model: MergedModel, settings: Compress, build: Build, exclude: Collection[str] = ()) -> None:
    """Replace every dense stacked expert weight, except in the layers named in `exclude`, and update the config.

    `build` makes the factorised modules. Weights are replaced one at a time, so memory grows by one weight only.
    Raises `ParameterError` if a weight would not shrink, and `UserError` if there is no weight to replace, both before
    the first factorisation.
    """
    chosen = {name: place for name, place in stacked_weights(model).items() if name.rsplit(".", 1)[0] not in exclude}
    if not chosen:
        raise UserError("nothing to compress: every sparse layer is excluded, or is compressed already")
    value_bytes = max(weight.element_size() for _, _, weight in chosen.values())
    check_size({name: _shape(weight) for name, (_, _, weight) in chosen.items()}, settings, value_bytes)
    for owner, attribute, weight in chosen.values():
        _, d_out, d_in = weight.shape
        module = build(*factorise(weight.detach(), rank_of(settings, d_out, d_in)), settings.structure)
        setattr(owner, attribute, module.train(owner.training))
    model.update_config()


def _shape(weight: Tensor) -> Shape:
    experts, d_out, d_in = weight.shape
    return experts, d_out, d_in
