"""What happens to the tokens of experts that are merged away, by name."""

from collections.abc import Callable

from mcsmoe.grouping.plan import LayerPlan
from mcsmoe.registry import Registry

Policy = Callable[[LayerPlan], LayerPlan]
"""The plan of a merged layer → the same with the policy applied."""

EXCLUDING = {"exclude"}
"""Policies that give experts no probability, which not every family's router can do."""

POLICIES: Registry[Policy] = Registry("router policy", "mcsmoe.router")
