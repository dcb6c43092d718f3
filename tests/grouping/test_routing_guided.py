from dataclasses import replace

import pytest
import torch

from mcsmoe.grouping.budget import least_groups
from mcsmoe.grouping.group import GROUPERS, Problem
from tests.grouping.problems import random_problems


def directly(given: Problem) -> list[int]:
    """One after another, by the words of the paper."""
    similarity = given.similarity().tolist()
    use = given.importance.tolist()
    members = [[e] for e in given.dominant]
    for e in sorted(range(len(use)), key=lambda e: (-use[e], e)):
        if e in given.dominant:
            continue
        open_ = [k for k, group in enumerate(members) if given.capacity is None or len(group) < given.capacity]
        best = max(similarity[e][members[k][0]] for k in open_)
        members[next(k for k in open_ if similarity[e][members[k][0]] == best)].append(e)
    return [next(k for k, group in enumerate(members) if e in group) for e in range(len(use))]


def test_every_other_expert_joins_the_most_similar_dominant_one():
    similarity = torch.tensor([[1, 0.2, 0.9, 0.1], [0.2, 1, 0.3, 0.4], [0.9, 0.3, 1, 0], [0.1, 0.4, 0, 1]])
    problem = Problem(torch.tensor([0.1, 0.5, 0.1, 0.3]), [1, 0], lambda: similarity)
    assert GROUPERS["routing-guided"](problem).tolist() == [1, 0, 1, 0]


def test_equal_similarities_go_to_the_more_used():
    problem = Problem(torch.tensor([0.2, 0.5, 0.3]), [1, 2], lambda: torch.full((3, 3), 0.5))
    assert GROUPERS["routing-guided"](problem).tolist() == [0, 0, 1]


def test_the_more_used_expert_is_served_first():
    """All prefer group 0, which has one place left."""
    similarity = torch.eye(5)
    similarity[:, 0] = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.9])
    frequency = torch.tensor([0.3, 0.1, 0.25, 0.2, 0.15])
    problem = Problem(frequency, [0, 2], lambda: similarity, capacity=3)
    # 3, then 4 by their use; nothing is left for expert 1, although it is more similar than 3.
    assert GROUPERS["routing-guided"](problem).tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("capacity", [None, 1, 2, 3, 5])
def test_against_a_direct_implementation(capacity: int | None):
    tight = 0
    for given in random_problems(200):
        experts = len(given.importance)
        if least_groups(experts, capacity) > len(given.dominant):
            continue
        given = replace(given, capacity=capacity)
        labels = GROUPERS["routing-guided"](given)
        assert labels.tolist() == directly(given)
        assert capacity is None or labels.bincount().max() <= capacity
        tight += labels.tolist() != directly(replace(given, capacity=None))
    assert (tight > 0) == (capacity not in (None, 1))  # with one place each, all experts are dominant
