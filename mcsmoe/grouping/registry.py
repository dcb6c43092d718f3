"""Groupers by name: how the experts of a layer are shared out among its dominant experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mcsmoe.errors import ParameterError
from mcsmoe.registry import Registry


@dataclass(frozen=True)
class Problem:
    """What a grouper may use of one layer with E experts; the similarity is computed when it is asked for."""

    frequency: Tensor  # [E]
    dominant: Sequence[int]  # most used first; their number is the layer's budget K
    similarity: Callable[[], Tensor]  # [E, E]
    capacity: int | None = None  # most members of a group; K × capacity ≥ E
    seed: int = 0


Grouper = Callable[[Problem], Tensor]
"""Problem → label of each expert [E] int64; label k is the k-th merged expert, and each of the K labels occurs."""

GROUPERS: Registry[Grouper] = Registry("grouping", "mcsmoe.grouping")

_KEEP_TO_CAPACITY: set[Grouper] = set()


def keeps_to_capacity(grouper: Grouper) -> Grouper:
    """Decorator that marks a grouper whose groups never have more than `capacity` members."""
    _KEEP_TO_CAPACITY.add(grouper)
    return grouper


def check_capacity(grouper: Grouper, capacity: int | None, name: str = "this grouping") -> None:
    """Raise `ParameterError` for a capacity that `grouper` would ignore; `name` is what the user calls it."""
    if capacity is not None and grouper not in _KEEP_TO_CAPACITY:
        able = ", ".join(known for known in GROUPERS if GROUPERS[known] in _KEEP_TO_CAPACITY)
        raise ParameterError("merge.capacity", capacity, f"{name} cannot keep to it, only {able} can; use null")
