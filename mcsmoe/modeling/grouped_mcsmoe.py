"""Products of tokens that are sorted by expert with stacked matrices of the experts.

This file travels beside the weights as remote code: it imports torch only.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

Factors = tuple[Tensor, Tensor]
"""u [K, out, r] and v [K, r, in]."""


def pieces(sizes: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each expert that has tokens, and which they are of all tokens sorted by expert."""
    start = 0
    for expert, size in enumerate(sizes):
        if size:
            yield expert, slice(start, start + size)
            start += size


def grouped_linear(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """Tokens x [T, in] sorted by expert, weight [K, out, in], tokens an expert (sum T) → [T, out]."""
    if len(x) >= len(sizes) and fits_grouped_mm(x, weight):
        ends = torch.tensor([*accumulate(sizes)], dtype=torch.int32, device=x.device)
        return F.grouped_mm(x, weight.mT, offs=ends)
    # unbind: the backward of weight[e] would build a zero [K, out, in] for each expert.
    matrices = weight.unbind(0) if torch.is_grad_enabled() else weight
    parts = [F.linear(x[part], matrices[expert]) for expert, part in pieces(sizes)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else x.new_zeros(0, weight.shape[1])


def fits_grouped_mm(x: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product takes x [T, in] and weight [K, out, in]: rows of whole 16 bytes, no autocast."""
    rows = (side * x.element_size() % 16 == 0 for side in weight.shape[1:])
    return x.dtype == weight.dtype != torch.float64 and all(rows) and not torch.is_autocast_enabled(x.device.type)


def low_rank(x: Tensor, factors: Factors | None, sizes: Sequence[int], d_out: int) -> Tensor:
    """U_e V_e x of tokens x [T, in] sorted by expert → [T, out]; zeros without factors."""
    if factors is None:
        return x.new_zeros(len(x), d_out)
    u, v = factors
    return grouped_linear(grouped_linear(x, v, sizes), u, sizes)
