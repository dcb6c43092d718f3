"""Budgets: how many groups each layer gets, and which experts are dominant."""

from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from mcsmoe.errors import ParameterError
from mcsmoe.registry import Registry

Importances = Mapping[str, Tensor]
"""Layer name → importance [E] of its experts, for each merged layer, in the order of the forward pass."""

Budget = Callable[[Importances, float, int | None], dict[str, list[int]]]
"""(importances, groups per layer, capacity) → dominant experts of each layer, most important first."""

BUDGETS: Registry[Budget] = Registry("budget", "mcsmoe.grouping")


def total_groups(groups: float, layers: int) -> int:
    """groups × layers in exact decimal arithmetic, rounded down: 2.3 × 10 → 23, 2.5 × 3 → 7."""
    return int(Fraction(str(groups)) * layers)


def least_groups(experts: int, capacity: int | None) -> int:
    """Fewest groups for which none needs more than `capacity` members."""
    return 1 if capacity is None else -(-experts // capacity)


def check(groups: float, experts: Mapping[str, int], budget: str, capacity: int | None = None) -> None:
    """Raise `ParameterError` if `groups` per layer is impossible; `experts` gives the number of experts by layer."""
    if groups < 1:
        raise ParameterError("groups", groups, "every merged layer keeps at least one group")
    if budget == "uniform":
        if groups != int(groups):
            raise ParameterError("groups", groups, "a uniform budget needs a whole number")
        room, asked, layers = min(experts.values(), default=0), int(groups), 1
        least = max((least_groups(count, capacity) for count in experts.values()), default=0)
        what = "the smallest merged layer"
    else:
        room, asked, layers = sum(experts.values()), total_groups(groups, len(experts)), len(experts)
        least = sum(least_groups(count, capacity) for count in experts.values())
        what = "all merged layers together"
    if experts and asked > room:
        most = f"{asked} groups asked of {what} with {room} experts: at most {room / layers:g} a layer"
        raise ParameterError("groups", groups, most)
    if asked < least:
        given = f"`groups` = {groups} gives {asked} groups where {least} are needed: {least / layers:g} a layer"
        raise ParameterError("capacity", capacity, given)


def by_importance(importance: Tensor) -> list[int]:
    """Expert ids in descending order of importance [E]; ties go to the lower id."""
    return torch.argsort(importance, descending=True, stable=True).tolist()


@BUDGETS.register("global")
def global_budget(importances: Importances, groups: float, capacity: int | None = None) -> dict[str, list[int]]:
    """Choose exactly K_tot = groups × layers dominant experts over all merged layers (paper §3.2).

    Every layer keeps its most important expert, or as many as `capacity` requires. The other slots go to the most
    important experts of all layers; ties go to the earlier layer, then to the lower id. Raises what `check` raises.
    """
    check(groups, {name: len(values) for name, values in importances.items()}, "global", capacity)
    ranked = {name: by_importance(values) for name, values in importances.items()}
    chosen = {name: order[: least_groups(len(order), capacity)] for name, order in ranked.items()}
    rest = [(name, e) for name, order in ranked.items() for e in order[len(chosen[name]) :]]
    values = torch.tensor([float(importances[name][e]) for name, e in rest], dtype=torch.float64)
    given = sum(len(order) for order in chosen.values())
    for i in by_importance(values)[: total_groups(groups, len(importances)) - given]:
        name, e = rest[i]
        chosen[name].append(e)
    return chosen


@BUDGETS.register("uniform")
def uniform_budget(importances: Importances, groups: float, capacity: int | None = None) -> dict[str, list[int]]:
    """Choose the `groups` (a whole number) most important experts of every layer. Raises what `check` raises."""
    check(groups, {name: len(values) for name, values in importances.items()}, "uniform", capacity)
    return {name: by_importance(values)[: int(groups)] for name, values in importances.items()}
