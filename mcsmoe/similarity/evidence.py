"""How alike the experts of a layer are, by name of what is compared."""

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
"""What the name of a similarity begins with whose values are turned round: unlike experts are alike."""


@dataclass(frozen=True)
class Evidence:
    """What a similarity may look at of one layer with E experts: sums, weights, gradients, other measurements.

    `measured` holds [E, E] matrices that collect derives from more than sums (`correlation.lsa`, `.max`).
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
"""A similarity `needs` an entry of `also` where routing statistics do not suffice."""


def similarity(name: str) -> Similarity:
    """The similarity `name`; after `reverse:` its values are 1 − s between different experts."""
    if not name.startswith(REVERSE):
        return SIMILARITIES[name]
    forward = SIMILARITIES[name.removeprefix(REVERSE)]
    return lambda evidence: (1 - forward(evidence)).fill_diagonal_(1.0)


def needs(name: str) -> str | None:
    """The entry of `also` without which a similarity cannot be computed; None: routing statistics do."""
    entry: str | None = SIMILARITIES.fact(name.removeprefix(REVERSE), "needs")
    return entry


def collected(value: T | None, name: str) -> T:
    """What similarity `name` needs. Raises `StatisticsError` where it was not collected."""
    if value is None:
        raise StatisticsError(f"similarity {name!r} needs {needs(name)!r}, which was not collected")
    return value


def cosine(gram: Tensor) -> Tensor:
    """cos′ = (1 + cos) / 2 [E, E] from the Gram matrix [E, E] of the experts' vectors.

    A vector of zeros is at 0.5 from every other; the diagonal is 1.
    """
    gram = (gram + gram.T).double() / 2  # a product's two halves may be rounded differently
    lengths = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(lengths, lengths)
    cosines = torch.where(scale > 0, gram / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    return ((1 + cosines.clamp(-1, 1)) / 2).fill_diagonal_(1.0)
