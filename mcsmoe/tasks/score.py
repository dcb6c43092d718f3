"""A score over a split, kept with the values of each example so that it can be recomputed on a resample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]

BOUNDS = ("_low", "_high")
"""Suffixes of the names of an interval's bounds: `accuracy` → `accuracy_low`, `accuracy_high`."""


def mean(values: Column) -> float:
    """Mean of `values` [N]; the share of right answers where these are 0 and 1."""
    return float(values.mean())


@dataclass(frozen=True)
class Score:
    """A statistic of `columns`: arrays [N] with one entry per example (or per question, as in MultiRC).

    `clusters` names the cluster of each entry, such as its question, because the answers to one question are not
    independent observations. None: all entries are independent.
    """

    columns: tuple[Column, ...]
    statistic: Callable[..., float] = mean
    clusters: Sequence[str] | None = None

    @property
    def value(self) -> float:
        """The statistic over all entries."""
        return self.statistic(*self.columns)


def share(right: Sequence[bool] | Sequence[float], clusters: Sequence[str] | None = None) -> Score:
    """Score that is the mean of `right`, one value per example."""
    return Score((np.array(right, dtype=np.float64),), clusters=clusters)


def f1(known: Column, said: Column) -> float:
    """F1 of class 1 (scikit-learn), 0 where it is undefined; an invalid answer counts as not class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(known, said, labels=[1], average="macro", zero_division=0.0))


def matthews(known: Column, said: Column) -> float:
    """Matthews' correlation (scikit-learn); invalid answers form a class of their own."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(known, said))


def pearson(known: Column, said: Column) -> float:
    """Pearson's correlation (SciPy); 0 if either side is constant."""
    from scipy.stats import pearsonr

    return 0.0 if _constant(known, said) else float(pearsonr(known, said).statistic)


def spearman(known: Column, said: Column) -> float:
    """Spearman's rank correlation (SciPy); 0 if either side is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _constant(known, said) else float(spearmanr(known, said).statistic)


def _constant(*columns: Column) -> bool:
    return any(column.min() == column.max() for column in columns)
