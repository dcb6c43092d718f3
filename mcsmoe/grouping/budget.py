"""How many groups each layer gets, and which experts hold them."""

from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from mcsmoe.errors import ParameterError
from mcsmoe.registry import Registry

Frequencies = Mapping[str, Tensor]
"""ν [E] of each merged layer, in the order of the forward pass."""

Budget = Callable[[Frequencies, float], dict[str, list[int]]]
"""(frequencies, groups a layer) → dominant experts of each layer, most used first."""

BUDGETS: Registry[Budget] = Registry("budget", "mcsmoe.grouping")


def total_groups(groups: float, layers: int) -> int:
    """groups × layers in exact decimal arithmetic, what is left of a fraction dropped."""
    return int(Fraction(str(groups)) * layers)


def check(groups: float, experts: Mapping[str, int], budget: str, name: str = "merge.groups") -> None:
    """Raise `ParameterError` when `groups` a layer cannot be had from layers with so many experts each.

    `name` is the parameter that `groups` comes from.
    """
    if groups < 1:
        raise ParameterError(name, groups, "every merged layer keeps at least one group")
    if budget == "uniform":
        if groups != int(groups):
            raise ParameterError(name, groups, "a uniform budget needs a whole number")
        room, asked = min(experts.values(), default=0), int(groups)
        what = "the smallest merged layer"
    else:
        room, asked = sum(experts.values()), total_groups(groups, len(experts))
        what = "all merged layers together"
    if experts and asked > room:
        raise ParameterError(name, groups, f"{asked} groups asked of {what} with {room} experts; lower it")


def by_use(frequency: Tensor) -> list[int]:
    """Experts in descending frequency [E], ties in ascending order of their ids."""
    return torch.argsort(frequency, descending=True, stable=True).tolist()


@BUDGETS.register("global")
def global_budget(frequencies: Frequencies, groups: float) -> dict[str, list[int]]:
    """Exactly K_tot = groups × layers dominant experts over all merged layers (paper §3.2).

    Every layer keeps its most used expert; the other slots go to the highest ν of all layers, ties to the
    earlier layer, then to the lower id.
    """
    check(groups, {name: len(nu) for name, nu in frequencies.items()}, "global")
    ranked = {name: by_use(nu) for name, nu in frequencies.items()}
    chosen = {name: order[:1] for name, order in ranked.items()}
    rest = [(name, e) for name, order in ranked.items() for e in sorted(order[1:])]
    nu = torch.tensor([float(frequencies[name][e]) for name, e in rest], dtype=torch.float64)
    for i in by_use(nu)[: total_groups(groups, len(frequencies)) - len(frequencies)]:
        name, e = rest[i]
        chosen[name].append(e)
    return chosen


@BUDGETS.register("uniform")
def uniform_budget(frequencies: Frequencies, groups: float) -> dict[str, list[int]]:
    """The `groups` most used experts of every layer; `groups` is a whole number."""
    check(groups, {name: len(nu) for name, nu in frequencies.items()}, "uniform")
    return {name: by_use(nu)[: int(groups)] for name, nu in frequencies.items()}
