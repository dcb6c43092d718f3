"""From statistics to the groups of every layer; groupers by name."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.errors import ParameterError
from mcsmoe.grouping.budget import Budget
from mcsmoe.grouping.importance import Importance, frequency
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.registry import Registry


@dataclass(frozen=True)
class Problem:
    """What a grouper may use of one layer with E experts; the similarity is computed when it is asked for."""

    importance: Tensor  # [E]
    dominant: Sequence[int]  # most important first; their number is the layer's budget K
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
        raise ParameterError("capacity", capacity, f"{who} cannot keep to it, only {able} can; use null")


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
    importance: Importance = frequency


def group(statistics: RoutingStatistics, excluded: Collection[str], how: Grouping) -> dict[str, LayerPlan]:
    """The plan of every layer: `excluded` ones stay untouched and have no share in the budget.

    A layer whose experts all stay single counts as untouched, too. Raises `ParameterError` for a budget
    that cannot be had, or a capacity that the grouper cannot keep to.
    """
    check_capacity(how.grouper, how.capacity)
    importances = {name: how.importance(layer) for name, layer in statistics.layers.items()}
    merged = {name: values for name, values in importances.items() if name not in excluded}
    dominant = how.budget(merged, how.groups, how.capacity)

    def plan(place: int, name: str, importance: Tensor) -> LayerPlan:
        if name in excluded or len(dominant[name]) == len(importance):
            return LayerPlan.untouched(importance)
        # Another draw in each layer, whatever the number of experts.
        seed = how.seed * len(importances) + place
        problem = Problem(importance, dominant[name], lambda: how.similarity(name), how.capacity, seed)
        return _plan(GROUPERS[how.grouper](problem), importance)

    return {name: plan(place, name, importance) for place, (name, importance) in enumerate(importances.items())}


def _plan(labels: Tensor, importance: Tensor) -> LayerPlan:
    """Groups in the order of their labels; the dominant one is the most important member, ties to the lower id."""
    count = int(labels.max()) + 1
    if count == len(importance):
        return LayerPlan.untouched(importance)
    groups = []
    for k in range(count):
        members = (labels == k).nonzero().flatten()  # ascending
        weights = importance[members]
        dominant = int(members[torch.argsort(weights, descending=True, stable=True)[0]])
        groups.append(Group(dominant, tuple(members.tolist()), tuple(weights.tolist())))
    return LayerPlan(tuple(groups), merged=True)
