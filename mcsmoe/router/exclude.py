"""Experts that are no dominant ones disappear for the router, too: their tokens choose among those that are left."""

from dataclasses import replace

from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.router.registry import POLICIES


@POLICIES.register("exclude")
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
