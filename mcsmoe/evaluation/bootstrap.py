"""How far a score may be off because the test split is a sample (Efron, 1979: the bootstrap)."""

import numpy as np
from numpy.typing import NDArray

from mcsmoe.tasks.score import Score

DRAWS = 1000
LEVEL = 0.95
SEED = 0


def interval(score: Score, draws: int = DRAWS) -> tuple[float, float]:
    """Percentile interval at `LEVEL` of `score` over samples of its examples, drawn with replacement.

    Where examples form clusters these are drawn, each with all its examples. The same score gives the same bounds.
    """
    rng = np.random.default_rng(SEED)
    parts = _parts(score)
    found = []
    for _ in range(draws):
        drawn = rng.integers(len(parts), size=len(parts))
        index = drawn if score.clusters is None else np.concatenate([parts[i] for i in drawn])
        found.append(score.statistic(*(column[index] for column in score.columns)))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _parts(score: Score) -> list[NDArray[np.intp]]:
    """Indices of the examples of each cluster; clusters of one where there are none."""
    names = score.clusters if score.clusters is not None else range(len(score.columns[0]))
    _, codes = np.unique(np.array(names), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)
