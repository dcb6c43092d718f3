"""A linear combination of experts, the arithmetic that several rules share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mcsmoe.architectures.layer import Expert

BLOCK = 2**18
"""Elements that are computed on at once."""


def combine(members: Sequence[Expert], weights: Tensor) -> Expert:
    """Σ w_e W_e / Σ w_e of every tensor, with weights [m] float64, summed in float64 and cast back.

    Weights that sum to 0 give the plain mean.
    """
    total = weights.sum()
    shares = (weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))).tolist()
    return {name: _weighted([member[name] for member in members], shares) for name in members[0]}


def _weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    def total(parts: Sequence[Tensor]) -> Tensor:
        exact = torch.zeros_like(parts[0], dtype=torch.float64)
        for part, share in zip(parts, shares, strict=True):
            exact.add_(part, alpha=share)
        return exact

    return by_blocks(total, tensors)


def by_blocks(formula: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """An element-wise `formula` of tensors of one shape, in the dtype of the first; its copies are no larger than
    `BLOCK`, which also keeps them in the cache."""
    result = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, result.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        result.view(-1)[block] = formula([tensor[block] for tensor in flat])
    return result
