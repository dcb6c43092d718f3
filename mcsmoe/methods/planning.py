"""Plans from a recipe and measurements."""

from collections.abc import Sequence

from torch import Tensor

from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.errors import StatisticsError
from mcsmoe.families import MoELayer, TensorSource, excluded_layers
from mcsmoe.grouping.budget import BUDGETS, total_groups
from mcsmoe.grouping.group import Grouping, group
from mcsmoe.grouping.importance import IMPORTANCES
from mcsmoe.grouping.plan import LayerPlan, Plan
from mcsmoe.grouping.policies import POLICIES
from mcsmoe.methods.recipe import Recipe
from mcsmoe.params import Merge
from mcsmoe.similarity.evidence import Evidence, similarity


def make_plan(
    method: str,
    recipe: Recipe,
    merge: Merge,
    statistics: RoutingStatistics,
    layers: Sequence[MoELayer],
    source: TensorSource,
    seed: int = 0,
) -> Plan:
    """Make the plan of `method`: the groups of every layer of the checkpoint `source`.

    Raises `StatisticsError` for statistics of another checkpoint or without what the recipe needs, `ParameterError` for
    an impossible budget.
    """
    expected = {layer.name: layer.experts for layer in layers}
    found = {name: len(layer.counts) for name, layer in statistics.layers.items()}
    if found != expected:
        raise StatisticsError(f"routing statistics of another checkpoint: experts {found}, not {expected}")
    merge = recipe.with_budget(merge)
    excluded = excluded_layers(merge.exclude, layers)
    by_name, gradients = {layer.name: layer for layer in layers}, Gradients(statistics.directory)

    def measure(name: str) -> Tensor:
        measured = statistics.measured.get(name, {})
        evidence = Evidence(by_name[name], statistics[name], source, gradients, measured, seed)
        return similarity(recipe.similarity)(evidence)

    importance = IMPORTANCES[recipe.importance]
    grouping = Grouping(recipe.grouping, BUDGETS[merge.budget], merge.groups, measure, merge.capacity, seed, importance)
    keep = None
    if recipe.progressive:
        groups = {name: LayerPlan.untouched(importance(layer)) for name, layer in statistics.layers.items()}
        keep = total_groups(merge.groups, len(groups) - len(excluded))
    else:
        groups = group(statistics, excluded, grouping)
        policy = POLICIES[recipe.router]
        groups = {name: policy(layer) if layer.merged else layer for name, layer in groups.items()}
    return Plan(method, recipe.rule, recipe.alignment, recipe.reference, groups, keep, tuple(excluded))
