"""Router policies by name: what happens to the tokens of experts that are merged away."""

from collections.abc import Callable
from dataclasses import replace

from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.registry import Registry

Policy = Callable[[LayerPlan], LayerPlan]
"""Plan of a merged layer → that plan with the policy applied."""

POLICIES: Registry[Policy] = Registry("router policy", "mcsmoe.grouping", excludes=False)
"""The fact `excludes` marks a policy that gives some experts no probability; not every family's router can do that."""


@POLICIES.register("map")
def keep_and_map(plan: LayerPlan) -> LayerPlan:
    """Keep all router rows; the gates of experts in one group add up (paper §3.2)."""
    return plan


@POLICIES.register("exclude", excludes=True)
def exclude(plan: LayerPlan) -> LayerPlan:
    """Reduce each group to its dominant expert; the others are dropped: their logits become −∞ before the softmax.

    −∞ is added, instead of multiplying by 0, so that a dropped expert is never selected (Chen et al.,
    arXiv 2206.00277).
    """
    kept = {
        group.dominant: Group(group.dominant, (group.dominant,), (group.weights[group.members.index(group.dominant)],))
        for group in plan.groups
    }
    dropped = [*plan.dropped, *(e for group in plan.groups for e in group.members if e not in kept)]
    return replace(plan, groups=tuple(kept.values()), dropped=tuple(sorted(dropped)))
