"""A figure over a split, kept with what it is made of, so that it can be made again of a sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

BOUNDS = ("_low", "_high")
"""Endings of the names of an interval's bounds, beside the name of the figure."""


def mean(values: Column) -> float:
    """The share of what is right, or the mean of what is counted."""
    return float(values.mean())


@dataclass(frozen=True)
class Score:
    """`statistic` of `columns`: arrays [N], an entry for each example.

    `clusters` names what each example belongs to: examples of one question are no independent observations.
    """

    columns: tuple[Column, ...]
    statistic: Callable[..., float] = mean
    clusters: Sequence[str] | None = None

    @property
    def value(self) -> float:
        """The figure over all examples."""
        return self.statistic(*self.columns)


def share(right: Sequence[bool] | Sequence[float], clusters: Sequence[str] | None = None) -> Score:
    """The mean of one value an example."""
    return Score((np.array(right, dtype=np.float64),), clusters=clusters)


def f1(known: Column, said: Column) -> float:
    """F1 of class 1 (scikit-learn), 0 where it is undefined; an answer that is no class is not class 1, either."""
    from sklearn.metrics import f1_score

    return float(f1_score(known, said, labels=[1], average="macro", zero_division=0.0))


def matthews(known: Column, said: Column) -> float:
    """Matthews' correlation (scikit-learn); answers that are no class at all make a class of their own."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(known, said))


def pearson(known: Column, said: Column) -> float:
    """Pearson's correlation (SciPy); 0 where one side does not vary."""
    from scipy.stats import pearsonr

    return 0.0 if _constant(known, said) else float(pearsonr(known, said).statistic)


def spearman(known: Column, said: Column) -> float:
    """Spearman's rank correlation (SciPy); 0 where one side does not vary."""
    from scipy.stats import spearmanr

    return 0.0 if _constant(known, said) else float(spearmanr(known, said).statistic)


def _constant(*columns: Column) -> bool:
    return any(column.min() == column.max() for column in columns)
