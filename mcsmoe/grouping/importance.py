"""How much each expert of a layer counts, by name: who is dominant, and how members of a group weigh."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.errors import CheckpointError
from mcsmoe.registry import Registry

Importance = Callable[[LayerStatistics], Tensor]
"""Statistics of a layer → share [E] float64 of each expert; they sum to 1, or are 0 where no token was seen.

Shares, because a global budget ranks experts of different layers against each other.
"""

IMPORTANCES: Registry[Importance] = Registry("importance", "mcsmoe.grouping", needs=None)
"""An importance `needs` an entry of `collect.also` where routing statistics do not suffice."""


@IMPORTANCES.register("frequency")
def frequency(statistics: LayerStatistics) -> Tensor:
    """n_e, the tokens that select e (paper §3.2)."""
    return _shares(statistics.counts)


@IMPORTANCES.register("soft-count")
def soft_count(statistics: LayerStatistics) -> Tensor:
    """Σ g_e, the gates of these tokens."""
    return _shares(statistics.gates)


@IMPORTANCES.register("ean", needs="norms")
def expert_activation_norm(statistics: LayerStatistics) -> Tensor:
    """Σ ‖f_e(x)‖ over these tokens (EAN, arXiv 2504.05586)."""
    return _shares(_collected(statistics.norms, "ean"))


@IMPORTANCES.register("man", needs="norms")
def mean_activation_norm(statistics: LayerStatistics) -> Tensor:
    """Σ ‖f_e(x)‖ / n_e: how much an expert gives counts, and not how often (MAN, arXiv 2606.15716)."""
    return _shares(_collected(statistics.norms, "man") / statistics.counts.clamp(min=1))


@IMPORTANCES.register("reap", needs="norms")
def reap(statistics: LayerStatistics) -> Tensor:
    """Σ g_e ‖f_e(x)‖ / n_e (REAP, arXiv 2510.13999)."""
    return _shares(_collected(statistics.gated_norms, "reap") / statistics.counts.clamp(min=1))


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.zeros_like(values)


def _collected(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise CheckpointError(f"importance {name!r} needs collect.also to list {IMPORTANCES.fact(name, 'needs')!r}")
    return value
