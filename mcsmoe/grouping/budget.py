"""How many groups each layer gets, and which experts hold them."""

from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from mcsmoe.errors import ParameterError
from mcsmoe.registry import Registry

Importances = Mapping[str, Tensor]
"""Importance [E] of the experts of each merged layer, in the order of the forward pass."""

Budget = Callable[[Importances, float, int | None], dict[str, list[int]]]
"""(importances, groups a layer, most members of a group) → dominant experts of each layer, most important first."""

BUDGETS: Registry[Budget] = Registry("budget", "mcsmoe.grouping")


def total_groups(groups: float, layers: int) -> int:
    """groups × layers in exact decimal arithmetic, what is left of a fraction dropped."""
    return int(Fraction(str(groups)) * layers)


def least_groups(experts: int, capacity: int | None) -> int:
    """Groups that a layer needs so that none has more than `capacity` members."""
    return 1 if capacity is None else -(-experts // capacity)


def check(groups: float, experts: Mapping[str, int], budget: str, capacity: int | None = None) -> None:
    """Raise `ParameterError` when `groups` a layer cannot be had from layers with so many experts each."""
    if groups < 1:
        raise ParameterError("groups", groups, "every merged layer keeps at least one group")
    if budget == "uniform":
        if groups != int(groups):
            raise ParameterError("groups", groups, "a uniform budget needs a whole number")
        room, asked = min(experts.values(), default=0), int(groups)
        least = max((least_groups(count, capacity) for count in experts.values()), default=0)
        what = "the smallest merged layer"
    else:
        room, asked = sum(experts.values()), total_groups(groups, len(experts))
        least = sum(least_groups(count, capacity) for count in experts.values())
        what = "all merged layers together"
    if experts and asked > room:
        raise ParameterError("groups", groups, f"{asked} groups asked of {what} with {room} experts; lower it")
    if asked < least:
        given = f"`groups` = {groups} gives {asked} groups where {least} are needed; raise one"
        raise ParameterError("capacity", capacity, given)


def by_importance(importance: Tensor) -> list[int]:
    """Experts in descending importance [E], ties in ascending order of their ids."""
    return torch.argsort(importance, descending=True, stable=True).tolist()


@BUDGETS.register("global")
def global_budget(importances: Importances, groups: float, capacity: int | None = None) -> dict[str, list[int]]:
    """Exactly K_tot = groups × layers dominant experts over all merged layers (paper §3.2).

    Every layer keeps its most important expert, or as many as `capacity` asks for; the other slots go to the
    most important of all layers, ties to the earlier layer, then to the lower id.
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
    """The `groups` most important experts of every layer; `groups` is a whole number."""
    check(groups, {name: len(values) for name, values in importances.items()}, "uniform", capacity)
    return {name: by_importance(values)[: int(groups)] for name, values in importances.items()}
