"""Groups of every layer from routing statistics, and the registry of groupers."""

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
    """What a grouper may use of one layer with E experts; the similarity is computed on demand."""

    importance: Tensor  # [E]
    dominant: Sequence[int]  # K of them, most important first
    similarity: Callable[[], Tensor]  # [E, E]
    capacity: int | None = None  # most members of a group, with K × capacity ≥ E
    seed: int = 0


Grouper = Callable[[Problem], Tensor]
"""Problem → labels [E] int64: expert e becomes part of merged expert labels[e]; each of the K labels occurs."""

GROUPERS: Registry[Grouper] = Registry("grouping", "mcsmoe.grouping", capacity=False, merges=True)
"""The fact `capacity` tells whether a grouper respects `Problem.capacity`; the others ignore it. `merges` tells whether
it makes K groups; one that does not leaves every expert by itself."""


def check_capacity(grouper: str, capacity: int | None, method: str | None = None) -> None:
    """Raise `ParameterError` for a capacity that the grouper would ignore; the message names the `method`, if given."""
    if capacity is not None and not GROUPERS.fact(grouper, "capacity"):
        who = f"grouping {grouper!r}" + (f" of method {method!r}" if method else "")
        able = ", ".join(name for name in GROUPERS if GROUPERS.fact(name, "capacity"))
        raise ParameterError("capacity", capacity, f"{who} cannot keep to it, only {able} can; use null")


@dataclass(frozen=True)
class Grouping:
    """How experts are grouped: the choice of dominant experts and of the members that join them."""

    grouper: str
    budget: Budget
    groups: float
    similarity: Callable[[str], Tensor]
    """Layer name → [E, E]; called only if the grouper needs it."""
    capacity: int | None = None
    seed: int = 0
    importance: Importance = frequency


def group(statistics: RoutingStatistics, excluded: Collection[str], how: Grouping) -> dict[str, LayerPlan]:
    """Group the experts of every layer: layer name → plan. `excluded` layers stay untouched and outside the budget.

    A layer whose experts all stay single counts as untouched, too. Raises `ParameterError` for an impossible budget,
    or for a capacity that the grouper ignores.
    """
    check_capacity(how.grouper, how.capacity)
    importances = {name: how.importance(layer) for name, layer in statistics.layers.items()}
    merged = {name: values for name, values in importances.items() if name not in excluded}
    dominant = how.budget(merged, how.groups, how.capacity)

    def plan(place: int, name: str, importance: Tensor) -> LayerPlan:
        if name in excluded or len(dominant[name]) == len(importance):
            return LayerPlan.untouched(importance)
        # A different seed for each layer, so that equal layers are not all grouped alike.
        seed = how.seed * len(importances) + place
        problem = Problem(importance, dominant[name], lambda: how.similarity(name), how.capacity, seed)
        return _plan(GROUPERS[how.grouper](problem), importance)

    return {name: plan(place, name, importance) for place, (name, importance) in enumerate(importances.items())}


def _plan(labels: Tensor, importance: Tensor) -> LayerPlan:
    """Groups in label order; the most important member is dominant, and ties go to the lower id."""
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
