"""From a recipe and the statistics to a plan."""

from collections.abc import Sequence

from mcsmoe.architectures.exclude import excluded_layers
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.errors import CheckpointError
from mcsmoe.grouping.budget import BUDGETS
from mcsmoe.grouping.group import group
from mcsmoe.grouping.plan import Plan
from mcsmoe.grouping.registry import GROUPERS
from mcsmoe.params import Merge
from mcsmoe.recipes.load import Recipe
from mcsmoe.routing.statistics import RoutingStatistics
from mcsmoe.similarity.registry import SIMILARITIES


def make_plan(
    method: str, recipe: Recipe, merge: Merge, statistics: RoutingStatistics, layers: Sequence[MoELayer]
) -> Plan:
    """The groups of every layer of the checkpoint.

    Raises `CheckpointError` for statistics of another checkpoint, `ParameterError` for a budget that cannot
    be had.
    """
    expected = {layer.name: layer.experts for layer in layers}
    found = {name: len(layer.counts) for name, layer in statistics.layers.items()}
    if found != expected:
        raise CheckpointError(
            f"routing statistics of another checkpoint: experts {found}, not {expected}; run collect again"
        )
    groups = group(
        statistics,
        excluded_layers(merge.exclude, layers),
        SIMILARITIES[recipe.similarity],
        GROUPERS[recipe.grouping],
        BUDGETS[merge.budget],
        recipe.budget(merge),
    )
    return Plan(method, recipe.rule, recipe.alignment, recipe.reference, groups)
