"""From statistics to the groups of every layer."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from mcsmoe.grouping.budget import Budget
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.grouping.registry import Grouper, Problem, check_capacity
from mcsmoe.routing.statistics import LayerStatistics, RoutingStatistics


@dataclass(frozen=True)
class Grouping:
    """How experts are grouped: who is dominant, and who joins whom."""

    grouper: Grouper
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
        return _plan(how.grouper(problem), layer.frequency)

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
