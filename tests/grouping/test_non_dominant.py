import pytest
import torch

from mcsmoe.grouping.group import GROUPERS
from mcsmoe.similarity.evidence import cosine
from tests.grouping.problems import problem, vectors

USE = torch.tensor([5.0, 1, 8, 0, 7, 6, 2])  # most used first: 2, 4, 5, 0, 6, 1, 3
SIMILARITY = cosine(vectors(7, 1) @ vectors(7, 1).T)


def groups(name: str, budget: int) -> list[list[int]]:
    labels = GROUPERS[name](problem(SIMILARITY, budget, USE))
    return [(labels == k).nonzero().flatten().tolist() for k in range(int(labels.max()) + 1)]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1, [[0, 1, 2, 3, 4, 5, 6]]),
        (2, [[2], [0, 1, 3, 4, 5, 6]]),
        (4, [[2], [4], [5], [0, 1, 3, 6]]),
        (7, [[2], [4], [5], [0], [6], [1], [3]]),
    ],
)
def test_all_non_dominant_become_one(budget: int, expected: list[list[int]]):
    assert groups("non-dominant-into-one", budget) == expected


@pytest.mark.parametrize(
    ("budget", "single", "founders"),
    [
        (1, [], [2]),
        (2, [2], [4]),
        (3, [2, 4], [5]),
        (4, [2, 4], [5, 0]),
        (5, [2, 4, 5], [0, 6]),
        (6, [2, 4, 5], [0, 6, 1]),
    ],
)
def test_half_of_the_dominant_stay_single_and_the_others_take_the_rest(
    budget: int, single: list[int], founders: list[int]
):
    expected = {founder: [founder] for founder in founders}
    for e in set(range(7)) - set(single) - set(founders):
        expected[max(founders, key=lambda founder: float(SIMILARITY[e, founder]))].append(e)
    assert groups("non-dominant", budget) == [[e] for e in single] + [sorted(expected[f]) for f in founders]
