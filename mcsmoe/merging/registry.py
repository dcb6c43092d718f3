"""Merging rules by name: how the members of a group become one expert."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from mcsmoe.architectures.layer import Expert, MoELayer
from mcsmoe.registry import Registry
from mcsmoe.routing.statistics import LayerStatistics


@dataclass(frozen=True)
class Members:
    """The experts of one group as a rule sees them, their hidden neurons aligned as the recipe says.

    `fisher(kind)` gives the Fisher information of each member's weights, aligned like them; `inputs()` the
    inputs [n, d] of the calibration tokens routed to any member. Both are looked up when asked for.
    """

    experts: Sequence[Expert]
    weights: Tensor  # [m] float64: activation frequencies ν
    dominant: int  # place of the dominant expert among the members
    layer: MoELayer
    statistics: LayerStatistics
    fisher: Callable[[str], Sequence[Expert]]
    inputs: Callable[[], Tensor]
    seed: int


Rule = Callable[[Members], Expert]
"""At least two members → the merged expert, in their dtypes. A single member is kept as it is without a rule."""

RULES: Registry[Rule] = Registry("merging rule", "mcsmoe.merging")

LOOKING = ("zipit-activation",)
"""Rules that look at tokens."""
NEEDS = {"fisher": "gradients", "exact-fisher": "exact-fisher"}
"""What `collect.also` must list for a rule that cannot do without."""
