"""What happens to the tokens of experts that are merged away, by name."""

from collections.abc import Callable
from dataclasses import replace

from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.registry import Registry

Policy = Callable[[LayerPlan], LayerPlan]
"""The plan of a merged layer → the same with the policy applied."""

POLICIES: Registry[Policy] = Registry("router policy", "mcsmoe.grouping", excludes=False)
"""A policy that `excludes` gives experts no probability, which not every family's router can do."""


@POLICIES.register("map")
def keep_and_map(plan: LayerPlan) -> LayerPlan:
    """All rows stay; gates of experts in one group add up (paper §3.2)."""
    return plan


@POLICIES.register("exclude", excludes=True)
def exclude(plan: LayerPlan) -> LayerPlan:
    """Each group is its dominant expert alone; the others are dropped, their logits −∞ before the softmax.

    Additive −∞, not a factor 0: a dropped expert can never be selected (Chen et al., arXiv 2206.00277).
    """
    kept = {
        group.dominant: Group(group.dominant, (group.dominant,), (group.weights[group.members.index(group.dominant)],))
        for group in plan.groups
    }
    dropped = [*plan.dropped, *(e for group in plan.groups for e in group.members if e not in kept)]
    return replace(plan, groups=tuple(kept.values()), dropped=tuple(sorted(dropped)))
