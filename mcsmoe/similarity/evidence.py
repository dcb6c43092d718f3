"""Registry of similarities by name, and the evidence that they are computed from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.errors import StatisticsError
from mcsmoe.families import MoELayer, TensorSource
from mcsmoe.registry import Registry

T = TypeVar("T")

REVERSE = "reverse:"
"""Prefix that turns a similarity round, so that unlike experts count as similar: `reverse:weight` gives 1 − s."""


@dataclass(frozen=True)
class Evidence:
    """What a similarity may use of one layer with E experts: sums, weights, gradients and other measurements.

    `measured` holds [E, E] matrices that cannot be computed from the sums: `correlation.lsa` and `correlation.max`.
    """

    layer: MoELayer
    statistics: LayerStatistics
    source: TensorSource
    gradients: Gradients | None = None
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0


Similarity = Callable[[Evidence], Tensor]
"""Evidence of a layer → [E, E] float64, symmetric, in [0, 1], diagonal 1."""

SIMILARITIES: Registry[Similarity] = Registry("similarity", "mcsmoe.similarity", needs=None)
"""The fact `needs` is the entry of `collect.also` that a similarity requires, or None: routing statistics suffice."""


def similarity(name: str) -> Similarity:
    """Look up a similarity; with the prefix `reverse:`, its values are 1 − s between different experts."""
    if not name.startswith(REVERSE):
        return SIMILARITIES[name]
    forward = SIMILARITIES[name.removeprefix(REVERSE)]
    return lambda evidence: (1 - forward(evidence)).fill_diagonal_(1.0)


def needs(name: str) -> str | None:
    """The entry of `collect.also` that similarity `name` requires, or None if routing statistics suffice."""
    entry: str | None = SIMILARITIES.fact(name.removeprefix(REVERSE), "needs")
    return entry


def collected(value: T | None, name: str) -> T:
    """Return `value`, which similarity `name` needs. Raises `StatisticsError` if it is None: not collected."""
    if value is None:
        raise StatisticsError(f"similarity {name!r} needs {needs(name)!r}, which was not collected")
    return value


def cosine(gram: Tensor) -> Tensor:
    """cos′ = (1 + cos) / 2 [E, E] from the Gram matrix [E, E] of the experts' vectors.

    A vector of zeros gets 0.5 with every other; the diagonal is 1.
    """
    gram = (gram + gram.T).double() / 2  # a matrix product may not be exactly symmetric
    lengths = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(lengths, lengths)
    cosines = torch.where(scale > 0, gram / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    return ((1 + cosines.clamp(-1, 1)) / 2).fill_diagonal_(1.0)
