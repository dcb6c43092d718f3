"""Importance of the rows of S: sensitivity, averaged over a row and over time."""

import torch
from torch import Tensor


@torch.no_grad()
def row_sensitivity(rows: Tensor, gradient: Tensor) -> Tensor:
    """Mean |s·∂L/∂s| of each row (LoSparse, arXiv 2306.11222): rows, gradient [n, in] → [n] float32.

    The first-order change of the loss if an entry were zeroed. One score a row is all a row mask needs.
    """
    return (rows * gradient).abs().mean(dim=1, dtype=torch.float32)


@torch.no_grad()
def moving_average(average: Tensor, score: Tensor, beta: float) -> Tensor:
    """β·average + (1 − β)·score, [n] (the same paper)."""
    return beta * average + (1 - beta) * score
