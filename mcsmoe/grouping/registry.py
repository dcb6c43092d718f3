"""Groupers by name: how the experts of a layer are shared out among its dominant experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mcsmoe.registry import Registry


@dataclass(frozen=True)
class Problem:
    """What a grouper may use of one layer with E experts; the similarity is computed when it is asked for."""

    frequency: Tensor  # [E]
    dominant: Sequence[int]  # most used first; their number is the layer's budget
    similarity: Callable[[], Tensor]  # [E, E]


Grouper = Callable[[Problem], Tensor]
"""Problem → label of each expert [E] int64; label k is the k-th merged expert."""

GROUPERS: Registry[Grouper] = Registry("grouping", "mcsmoe.grouping")
