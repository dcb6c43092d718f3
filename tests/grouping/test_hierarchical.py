from itertools import combinations

import pytest
import torch
from torch import Tensor

from mcsmoe.grouping.group import GROUPERS
from mcsmoe.similarity.evidence import cosine
from tests.grouping.problems import problem, vectors


def naive(linkage: str, x: Tensor, groups: int) -> list[list[int]]:
    """Join the two nearest clusters, measured afresh each time; distance (1 − cos)/2 of the rows of `x`."""
    unit = x / x.norm(dim=1, keepdim=True)
    distance = (1 - unit @ unit.T) / 2
    clusters = [[e] for e in range(len(x))]

    def spread(members: list[int]) -> Tensor:
        points = unit[members]
        return (points - points.mean(dim=0)).square().sum()

    def apart(a: list[int], b: list[int]) -> Tensor:
        between = distance[a][:, b]
        return {
            "average": between.mean,
            "single": between.min,
            "complete": between.max,
            "ward": lambda: spread(a + b) - spread(a) - spread(b),  # what Ward's criterion grows by
        }[linkage]()

    while len(clusters) > groups:
        a, b = min(combinations(clusters, 2), key=lambda pair: float(apart(*pair)))
        clusters = [c for c in clusters if c not in (a, b)] + [sorted(a + b)]
    return sorted(clusters)


@pytest.mark.parametrize("linkage", ["average", "single", "complete", "ward"])
@pytest.mark.parametrize("seed", range(5))
def test_against_a_naive_implementation(linkage: str, seed: int):
    x = vectors(9, seed, width=4)
    for groups in range(1, 10):
        labels = GROUPERS[f"hierarchical-{linkage}"](problem(cosine(x @ x.T), groups))
        found = [(labels == k).nonzero().flatten().tolist() for k in range(groups)]
        assert sorted(found) == naive(linkage, x, groups)


def test_the_linkages_differ():
    """Else the comparison with the naive implementation would miss one that stands for another."""
    answers = set()
    for linkage in ("average", "single", "complete", "ward"):
        layers = [vectors(9, seed, width=4) for seed in range(5)]
        answers.add(str([naive(linkage, x, groups) for x in layers for groups in range(2, 6)]))
    assert len(answers) == 4


@pytest.mark.parametrize("linkage", ["average", "single", "complete", "ward"])
@pytest.mark.parametrize("groups", range(1, 9))
def test_ties_do_not_change_the_number_of_groups(linkage: str, groups: int):
    """Two crowds in which all are equally far apart: a cut at any height would give 1, 2 or 8 groups."""
    similarity = torch.block_diag(torch.full((4, 4), 0.75), torch.full((4, 4), 0.75)).clamp(min=0.5)
    labels = GROUPERS[f"hierarchical-{linkage}"](problem(similarity.fill_diagonal_(1.0), groups))
    assert len(labels.unique()) == groups
    if groups > 1:
        assert not set(labels[:4].tolist()) & set(labels[4:].tolist())
