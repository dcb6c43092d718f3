"""Decision which experts become one: importances, number of groups per layer, members of each group; kept in a plan.

    from mcsmoe.grouping import BUDGETS, IMPORTANCES, Grouping
    from mcsmoe.grouping.group import group

    how = Grouping("routing-guided", BUDGETS["global"], groups=8, similarity=measure, importance=IMPORTANCES["reap"])
    plans = group(statistics, excluded=[], how=how)
    plans["decoder.0"].groups[0].members  # (2, 5, 7), one of them `dominant`

Four kinds of functions are registered by name: importances (statistics → importance of each expert), budgets
(importances → dominant experts), groupers (`Problem` → label of each expert) and router policies (what becomes of the
tokens of experts that are merged away).
"""

from mcsmoe.grouping.budget import BUDGETS, Budget, total_groups
from mcsmoe.grouping.group import GROUPERS, Grouper, Grouping, Problem
from mcsmoe.grouping.importance import IMPORTANCES, Importance
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.grouping.policies import POLICIES, Policy

__all__ = [
    "BUDGETS",
    "GROUPERS",
    "IMPORTANCES",
    "POLICIES",
    "Budget",
    "Group",
    "Grouper",
    "Grouping",
    "Importance",
    "LayerPlan",
    "Plan",
    "Policy",
    "Problem",
    "total_groups",
]
