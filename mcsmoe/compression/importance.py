"""Importance of the units (rows, columns or elements) of S: their score in one step, and its average over steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcsmoe.compression.shards import whole
from mcsmoe.params import Compress

Score = Callable[[Tensor, Tensor | None], Tensor]
"""Values and gradient [n, w] (None: no token reached the layer) → score of each unit [n], float32 or better."""


def sensitivity(values: Tensor, gradient: Tensor | None) -> Tensor:
    """Mean |s·∂L/∂s| of each unit: how the loss changes, to first order, if an entry is zeroed (LoSparse)."""
    if gradient is None:
        return torch.zeros_like(values[:, 0], dtype=_precise(values))
    return (values * gradient).abs().mean(dim=1, dtype=_precise(values))


def magnitude(values: Tensor, gradient: Tensor | None) -> Tensor:
    """Mean |s| of each unit."""
    return values.abs().mean(dim=1, dtype=_precise(values))


SCORES: dict[str, Score] = {"sensitivity": sensitivity, "magnitude": magnitude}


def _precise(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _moving(average: Tensor, new: Tensor, beta: float) -> Tensor:
    return beta * average + (1 - beta) * new


class Importance:
    """What the units of one weight rank by: I ← β·I + (1 − β)·score, from I = 0 (LoSparse, arXiv 2306.11222).

    With `uncertainty` β₂ they rank by I·U, where U ← β₂·U + (1 − β₂)·|score − I| with the new I, from U = 0: a
    unit that is rarely important, but much so when it is, stays (PLATON, arXiv 2206.12562, there element by element).
    """

    def __init__(self, values: Tensor, settings: Compress) -> None:
        self._score = SCORES[settings.importance]
        self._beta, self._uncertainty = settings.beta, settings.uncertainty
        self._average = values.new_zeros(len(values), dtype=_precise(values))
        self._deviation = torch.zeros_like(self._average) if settings.uncertainty is not None else None

    @torch.no_grad()
    def update(self, values: Tensor, gradient: Tensor | None) -> None:
        """Take one step's values and gradient [n, w] into the averages."""
        score = whole(self._score(values, gradient)).to(self._average.device)
        self._average = _moving(self._average, score, self._beta)
        if self._deviation is not None and self._uncertainty is not None:
            self._deviation = _moving(self._deviation, (score - self._average).abs(), self._uncertainty)

    @property
    def ranking(self) -> Tensor:
        """The larger, the more important; [n], not negative."""
        return self._average if self._deviation is None else self._average * self._deviation
