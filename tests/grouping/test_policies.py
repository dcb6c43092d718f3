import pytest
import torch

from mcsmoe.errors import UnknownNameError
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.grouping.policies import POLICIES


def example() -> LayerPlan:
    return LayerPlan(
        (Group(4, (0, 4, 5), (0.1, 0.4, 0.2)), Group(1, (1, 2), (0.2, 0.0)), Group(3, (3,), (0.1,))), merged=True
    )


def test_map_sends_every_token_to_the_group_of_its_expert():
    plan = POLICIES["map"](example())
    assert plan == example()
    assert plan.expert_map.tolist() == [0, 1, 1, 2, 0, 0]
    assert plan.dropped == ()


def test_exclude_leaves_the_dominant_experts_alone():
    plan = POLICIES["exclude"](example())
    assert plan.groups == (Group(4, (4,), (0.4,)), Group(1, (1,), (0.2,)), Group(3, (3,), (0.1,)))
    assert plan.dropped == (0, 2, 5)
    assert plan.expert_map.tolist() == [-1, 1, -1, 2, 0, -1]


def test_exclude_twice_drops_no_more_and_forgets_none():
    once = POLICIES["exclude"](example())
    assert POLICIES["exclude"](once) == once


def test_exclude_drops_nobody_who_is_alone():
    untouched = LayerPlan.untouched(torch.tensor([0.5, 0.0, 0.5]))
    assert POLICIES["exclude"](untouched) == untouched


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_keeps_the_groups_and_every_expert(name: str):
    plan = POLICIES[name](example())
    assert plan.merged
    assert [group.dominant for group in plan.groups] == [4, 1, 3]
    assert len(plan.expert_map) == 6


def test_unknown_policy():
    with pytest.raises(UnknownNameError, match="unknown router policy 'drop'; known: exclude, map"):
        POLICIES["drop"]
