"""Importances by name: they decide which experts are dominant and how much each member of a group weighs."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.errors import StatisticsError
from mcsmoe.registry import Registry

Importance = Callable[[LayerStatistics], Tensor]
"""Statistics of a layer → importances [E] float64 as shares: they sum to 1, or are all 0 if no token was seen.

They are shares because a global budget compares experts of different layers.
"""

IMPORTANCES: Registry[Importance] = Registry("importance", "mcsmoe.grouping", needs=None)
"""The fact `needs` is the entry of `collect.also` that an importance requires, or None: routing statistics suffice."""


@IMPORTANCES.register("frequency")
def frequency(statistics: LayerStatistics) -> Tensor:
    """Share [E] of n_e, the number of tokens that select e: its activation frequency (paper §3.2)."""
    return _shares(statistics.counts)


@IMPORTANCES.register("soft-count")
def soft_count(statistics: LayerStatistics) -> Tensor:
    """Share [E] of Σ g_e, the sum of an expert's gates."""
    return _shares(statistics.gates)


@IMPORTANCES.register("ean", needs="norms")
def expert_activation_norm(statistics: LayerStatistics) -> Tensor:
    """Share [E] of Σ ‖f_e(x)‖ over the tokens that select e (EAN, arXiv 2504.05586)."""
    return _shares(_collected(statistics.norms, "ean"))


@IMPORTANCES.register("man", needs="norms")
def mean_activation_norm(statistics: LayerStatistics) -> Tensor:
    """Share [E] of the mean norm Σ ‖f_e(x)‖ / n_e over the tokens that select e (MAN, arXiv 2606.15716)."""
    return _shares(_collected(statistics.norms, "man") / statistics.counts.clamp(min=1))


@IMPORTANCES.register("reap", needs="norms")
def reap(statistics: LayerStatistics) -> Tensor:
    """Share [E] of the mean gated norm Σ g_e ‖f_e(x)‖ / n_e over the tokens that select e (REAP, arXiv 2510.13999)."""
    return _shares(_collected(statistics.gated_norms, "reap") / statistics.counts.clamp(min=1))


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.zeros_like(values)


def _collected(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise StatisticsError(f"importance {name!r} needs `also` to list {IMPORTANCES.fact(name, 'needs')!r}")
    return value
