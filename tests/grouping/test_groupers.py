"""What holds for every grouper."""

from dataclasses import replace

import pytest
import torch

from mcsmoe.errors import ParameterError
from mcsmoe.grouping.budget import by_importance
from mcsmoe.grouping.group import GROUPERS, Problem, check_capacity
from mcsmoe.similarity.evidence import cosine
from tests.grouping.problems import problem, random_problems, vectors

ALL = pytest.mark.parametrize("name", list(GROUPERS))
MERGING = pytest.mark.parametrize("name", [name for name in GROUPERS if name != "none"])


def test_what_is_registered():
    assert {
        "none",
        "routing-guided",
        "hierarchical-average",
        "hierarchical-single",
        "hierarchical-complete",
        "hierarchical-ward",
        "k-means",
        "spectral",
        "random",
        "non-dominant",
        "non-dominant-into-one",
    } <= set(GROUPERS)


@MERGING
def test_exactly_k_groups_in_the_order_of_their_use(name: str):
    for case, given in enumerate(random_problems(200)):
        labels = GROUPERS[name](given)
        assert labels.dtype == torch.int64
        assert labels.shape == given.importance.shape
        assert sorted(set(labels.tolist())) == list(range(len(given.dominant))), case
        assert list(dict.fromkeys(labels[by_importance(given.importance)].tolist())) == list(
            range(len(given.dominant))
        ), case


@ALL
def test_the_same_problem_has_the_same_answer(name: str):
    for given in random_problems(20):
        before = given.similarity().clone()
        first = GROUPERS[name](given)
        assert torch.equal(GROUPERS[name](given), first)
        assert torch.equal(given.similarity(), before)


@MERGING
@pytest.mark.parametrize("frequency", [torch.zeros(6), torch.tensor([0.0, 0, 9, 0, 0, 0]), torch.ones(6)])
@pytest.mark.parametrize("groups", range(1, 7))
def test_dead_experts(name: str, frequency: torch.Tensor, groups: int):
    dead = cosine(torch.diag(torch.tensor([0.0, 0, 3, 0, 0, 0])))
    labels = GROUPERS[name](problem(dead, groups, frequency))
    assert len(labels.unique()) == groups


@ALL
def test_as_many_groups_as_experts(name: str):
    given = problem(cosine(vectors(5, 0) @ vectors(5, 0).T), 5, torch.tensor([1.0, 5, 3, 3, 0]))
    assert GROUPERS[name](given).tolist() == (list(range(5)) if name == "none" else [3, 0, 1, 2, 4])


@MERGING
def test_one_group(name: str):
    assert GROUPERS[name](problem(cosine(vectors(5, 0) @ vectors(5, 0).T), 1)).tolist() == [0] * 5


@ALL
def test_one_expert(name: str):
    assert GROUPERS[name](problem(torch.ones(1, 1), 1)).tolist() == [0]


def test_another_seed_draws_other_groups():
    draws = {tuple(GROUPERS["random"](problem(torch.eye(8), 3, seed=seed)).tolist()) for seed in range(10)}
    assert len(draws) > 5


def test_random_groups_do_not_follow_use():
    """Each pair of experts meets equally often: 3 groups of 6 experts, founders drawn at random."""
    together = torch.zeros(6, 6)
    for seed in range(2000):
        labels = GROUPERS["random"](problem(torch.eye(6), 3, seed=seed))
        together += labels[:, None] == labels
    met = together[~torch.eye(6, dtype=torch.bool)] / 2000
    assert met.max() - met.min() < 0.06


def test_only_some_keep_to_a_capacity():
    able = []
    for name in GROUPERS:
        check_capacity(name, None)
        try:
            check_capacity(name, 3)
            able.append(name)
        except ParameterError:
            pass
    assert able == ["none", "routing-guided"]


def test_a_capacity_that_would_be_ignored():
    message = "grouping 'k-means' of method 'mine' cannot keep to it, only none, routing-guided can"
    with pytest.raises(ParameterError, match=message):
        check_capacity("k-means", 3, "mine")


def test_similarity_is_not_computed_where_none_is_needed():
    def never() -> torch.Tensor:
        raise AssertionError("asked for the similarity")

    given = Problem(torch.tensor([0.5, 0.3, 0.2]), [0, 1], never)
    assert GROUPERS["non-dominant-into-one"](given).tolist() == [0, 1, 1]
    assert len(GROUPERS["random"](given).unique()) == 2
    assert GROUPERS["none"](given).tolist() == [0, 1, 2]
    for name in ("hierarchical-average", "hierarchical-ward", "k-means", "spectral"):
        assert GROUPERS[name](replace(given, dominant=[0])).tolist() == [0, 0, 0]
        assert GROUPERS[name](replace(given, dominant=[0, 1, 2])).tolist() == [0, 1, 2]
