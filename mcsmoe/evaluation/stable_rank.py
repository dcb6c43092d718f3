"""Stable rank of experts' weights, to check the paper's claim that merging lowers it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mcsmoe.families import Family, MoELayer, TensorSource


def stable_rank(weight: Tensor) -> Tensor:
    """‖W‖²_F / ‖W‖²_2 of each matrix of weight [..., out, in] → [...] float64 (paper §3.3).

    It lies between 1 and the rank, and is small if few directions carry the weight; 0 for a matrix of zeros.
    """
    values = torch.linalg.svdvals(weight.double()).square()  # [..., min(out, in)], largest first
    return torch.where(values[..., 0] > 0, values.sum(-1) / values[..., 0].clamp(min=1e-300), 0.0)


def stock_ranks(source: TensorSource, layers: Sequence[MoELayer]) -> dict[str, float]:
    """Mean stable rank by layer of a stock checkpoint, over experts and their weights; reads one tensor at a time."""
    return {
        layer.name: _mean(layer.read(source, e, name) for e in range(layer.experts) for name in weights(layer))
        for layer in layers
    }


def merged_ranks(source: TensorSource, family: Family, layers: Sequence[MoELayer]) -> dict[str, float]:
    """Mean stable rank by layer of a merged checkpoint, over experts and their weights; reads one stack at a time."""
    return {
        layer.name: _mean(source.tensor(family.merged_tensor(layer, name)) for name in weights(layer))
        for layer in layers
    }


def weights(layer: MoELayer) -> list[str]:
    """Names of an expert's weights, without biases."""
    return [name for name, role in layer.layout.items() if role.is_weight]


def _mean(tensors: Iterator[Tensor]) -> float:
    return float(torch.cat([stable_rank(tensor).flatten() for tensor in tensors]).mean())
