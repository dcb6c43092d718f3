"""From statistics to the groups of every layer."""

from collections.abc import Collection

import torch
from torch import Tensor

from mcsmoe.grouping.budget import Budget
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.grouping.registry import Grouper, Problem
from mcsmoe.routing.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.similarity.registry import Similarity


def group(
    statistics: RoutingStatistics,
    excluded: Collection[str],
    similarity: Similarity,
    grouper: Grouper,
    budget: Budget,
    groups: float,
) -> dict[str, LayerPlan]:
    """The plan of every layer: `excluded` ones stay untouched and have no share in the budget.

    A layer whose experts all stay single counts as untouched, too. Raises `ParameterError` for a budget
    that cannot be had.
    """
    frequencies = {name: layer.frequency for name, layer in statistics.layers.items() if name not in excluded}
    dominant = budget(frequencies, groups)

    def plan(name: str, layer: LayerStatistics) -> LayerPlan:
        if name in excluded or len(dominant[name]) == len(layer.frequency):
            return LayerPlan.untouched(layer.frequency)
        labels = grouper(Problem(layer.frequency, dominant[name], lambda: similarity(layer)))
        return _plan(labels, layer.frequency)

    return {name: plan(name, layer) for name, layer in statistics.layers.items()}


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
