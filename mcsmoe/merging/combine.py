"""A linear combination of experts, the arithmetic that several rules share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcsmoe.architectures.layer import Expert


def combine(members: Sequence[Expert], weights: Tensor) -> Expert:
    """Σ w_e W_e / Σ w_e of every tensor, with weights [m] float64, summed in float64 and cast back.

    Weights that sum to 0 give the plain mean.
    """
    total = weights.sum()
    shares = (weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))).tolist()
    return {name: _weighted([member[name] for member in members], shares) for name in members[0]}


def _weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor, alpha=share)
    return total.to(tensors[0].dtype)
