"""From statistics to the groups of every layer; groupers by name."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.errors import ParameterError
from mcsmoe.grouping.budget import Budget
from mcsmoe.grouping.plan import Group, LayerPlan
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

GROUPERS: Registry[Grouper] = Registry("grouping", "mcsmoe.grouping", capacity=False)
"""A grouper with `capacity` never makes a group of more than `Problem.capacity` members; others ignore it."""


def check_capacity(grouper: str, capacity: int | None, method: str | None = None) -> None:
    """Raise `ParameterError` for a capacity that the grouper of this name would ignore; `method` is who asks for it."""
    if capacity is not None and not GROUPERS.fact(grouper, "capacity"):
        who = f"grouping {grouper!r}" + (f" of method {method!r}" if method else "")
        able = ", ".join(name for name in GROUPERS if GROUPERS.fact(name, "capacity"))
        raise ParameterError("merge.capacity", capacity, f"{who} cannot keep to it, only {able} can; use null")


@dataclass(frozen=True)
class Grouping:
    """How experts are grouped: who is dominant, and who joins whom."""

    grouper: str
    budget: Budget
    groups: float
    similarity: Callable[[str], Tensor]
    """Layer name → [E, E]; computed only for layers whose grouper asks."""
    capacity: int | None = None
    seed: int = 0


def group(statistics: RoutingStatistics, excluded: Collection[str], how: Grouping) -> dict[str, LayerPlan]:
    """The plan of every layer: `excluded` ones stay untouched and have no share in the budget.

    A layer whose experts all stay single counts as untouched, too. Raises `ParameterError` for a budget
    that cannot be had, or a capacity that the grouper cannot keep to.
    """
    check_capacity(how.grouper, how.capacity)
    frequencies = {name: layer.frequency for name, layer in statistics.layers.items() if name not in excluded}
    dominant = how.budget(frequencies, how.groups, how.capacity)

    def plan(place: int, name: str, layer: LayerStatistics) -> LayerPlan:
        if name in excluded or len(dominant[name]) == len(layer.frequency):
            return LayerPlan.untouched(layer.frequency)
        # Another draw in each layer, whatever the number of experts.
        seed = how.seed * len(statistics.layers) + place
        problem = Problem(layer.frequency, dominant[name], lambda: how.similarity(name), how.capacity, seed)
        return _plan(GROUPERS[how.grouper](problem), layer.frequency)

    return {name: plan(place, name, layer) for place, (name, layer) in enumerate(statistics.layers.items())}


def _plan(labels: Tensor, frequency: Tensor) -> LayerPlan:
    """Groups in the order of their labels; the dominant one is the most used member, ties to the lower id."""
    count = int(labels.max()) + 1
    if count == len(frequency):
        return LayerPlan.untouched(frequency)
    groups = []
    for k in range(count):
        members = (labels == k).nonzero().flatten()  # ascending
        nu = frequency[members]
        dominant = int(members[torch.argsort(nu, descending=True, stable=True)[0]])
        groups.append(Group(dominant, tuple(members.tolist()), tuple(nu.tolist())))
    return LayerPlan(tuple(groups), merged=True)
