"""The router is left as it is: a token goes to the group of the expert that it chooses."""

from mcsmoe.grouping.plan import LayerPlan
from mcsmoe.router.registry import POLICIES


@POLICIES.register("map")
def keep_and_map(plan: LayerPlan) -> LayerPlan:
    """All rows stay; gates of experts in one group add up (paper §3.2)."""
    return plan
