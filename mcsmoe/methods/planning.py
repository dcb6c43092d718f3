"""Plans from a recipe and measurements."""

from torch import Tensor

from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.families import excluded_layers
from mcsmoe.grouping.budget import BUDGETS, total_groups
from mcsmoe.grouping.group import Grouping, group
from mcsmoe.grouping.importance import IMPORTANCES
from mcsmoe.grouping.plan import LayerPlan, Plan
from mcsmoe.grouping.policies import POLICIES
from mcsmoe.methods.recipe import Recipe
from mcsmoe.model import Model
from mcsmoe.params import Merge
from mcsmoe.similarity.evidence import Evidence, similarity


def make_plan(
    method: str,
    recipe: Recipe,
    merge: Merge,
    statistics: RoutingStatistics,
    model: Model,
    seed: int = 0,
) -> Plan:
    """Make the plan of `method`: the groups of every layer of `model`.

    Raises `StatisticsError` for statistics of another model or without what the recipe needs, `ParameterError` for an
    impossible budget.
    """
    layers, source = model.layers, model.checkpoint
    statistics.check_model(layers, model.fingerprint)
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
