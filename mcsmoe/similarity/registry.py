"""How alike the experts of a layer are, by name of what is compared."""

from collections.abc import Callable

from torch import Tensor

from mcsmoe.registry import Registry
from mcsmoe.routing.statistics import LayerStatistics

Similarity = Callable[[LayerStatistics], Tensor]
"""Statistics of a layer → [E, E] float64, symmetric, in [0, 1], diagonal 1."""

SIMILARITIES: Registry[Similarity] = Registry("similarity", "mcsmoe.similarity")
