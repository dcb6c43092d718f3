"""Merging rules by name: how the members of a group become one expert."""

from collections.abc import Callable, Sequence

from torch import Tensor

from mcsmoe.architectures.layer import Expert
from mcsmoe.registry import Registry

Rule = Callable[[Sequence[Expert], Tensor], Expert]
"""(aligned members, their frequencies ν [m] float64) → the merged expert, in the members' dtypes."""

RULES: Registry[Rule] = Registry("merging rule", "mcsmoe.merging")
