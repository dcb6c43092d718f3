from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mcsmoe.alignment import assignment
from mcsmoe.alignment.assignment import assign, sparse_assignment


def solved(cost: np.ndarray, candidates: int) -> np.ndarray:
    return sparse_assignment(-cost, candidates)


def total(cost: np.ndarray, perm: np.ndarray) -> float:
    return float(cost[np.arange(len(cost)), perm].sum())


def test_small_problem_against_all_permutations():
    similarity = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    best = max(permutations(range(6)), key=lambda p: float(similarity[rows, list(p)].sum()))
    assert assign(similarity).tolist() == list(best)


@pytest.mark.parametrize("candidates", [2, 5, 64])
@pytest.mark.parametrize("kind", ["random", "low-rank", "planted", "ties"])
def test_sparse_solver_is_optimal(kind: str, candidates: int, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(1)
    size = 200
    cost = rng.normal(size=(size, size))
    if kind == "low-rank":
        cost = rng.normal(size=(size, 3)) @ rng.normal(size=(3, size))
    elif kind == "planted":
        base = rng.normal(size=(size, 20))
        cost = -base @ (base + 0.3 * rng.normal(size=base.shape))[rng.permutation(size)].T
    elif kind == "ties":
        cost = rng.integers(0, 4, size=(size, size)).astype(float)
    monkeypatch.setattr(assignment, "CHUNK", 64 * size)
    monkeypatch.setattr(assignment, "TOO_MANY", size)
    perm = solved(cost, candidates)
    assert sorted(perm) == list(range(size))
    assert total(cost, perm) == pytest.approx(total(cost, linear_sum_assignment(cost)[1]), abs=1e-9)


def test_an_optimum_that_is_not_among_the_candidates():
    """Every row prefers the same five columns, so that most get one that is none of their six best."""
    cost = np.random.default_rng(2).normal(size=(100, 100))
    cost[:, :5] -= 3
    best = linear_sum_assignment(cost)[1]
    better = (cost < cost[np.arange(100), best][:, None]).sum(1)  # columns that each row likes more
    assert better.max() >= 6
    assert total(cost, solved(cost, 6)) == pytest.approx(total(cost, best))


def test_no_full_matching_among_candidates():
    rng = np.random.default_rng(4)
    cost = 5 * np.arange(80.0) + rng.normal(size=(80, 80))  # every row likes the same columns best
    assert total(cost, solved(cost, 3)) == pytest.approx(total(cost, linear_sum_assignment(cost)[1]))


def test_constant_costs():
    assert sorted(solved(np.full((80, 80), 2.5), 30)) == list(range(80))


def test_large_problem_takes_the_sparse_solver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assignment, "DENSE_BELOW", 100)
    similarity = torch.randn(120, 120, generator=torch.Generator().manual_seed(3))
    dense = linear_sum_assignment(similarity.numpy(), maximize=True)[1]
    assert assign(similarity).tolist() == dense.tolist()


def test_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        assign(torch.full((3, 3), torch.nan))


def test_largest_entries_in_different_columns_need_no_solver(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assignment, "linear_sum_assignment", None)
    monkeypatch.setattr(assignment, "sparse_assignment", None)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(5))
    similarity = torch.rand(50, 50, generator=torch.Generator().manual_seed(6))
    similarity[torch.arange(50), order] += 1
    assert torch.equal(assign(similarity), order)


def test_too_many_candidates_go_to_the_dense_solver(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def dense(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(cost.shape)
        return linear_sum_assignment(cost)

    monkeypatch.setattr(assignment, "linear_sum_assignment", dense)
    rng = np.random.default_rng(7)
    cost = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 300))
    assert total(cost, solved(cost, 24)) == pytest.approx(total(cost, linear_sum_assignment(cost)[1]))
    assert calls == [(300, 300)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_entry_that_is_not_finite_is_refused(value: float):
    similarity = torch.eye(4)
    similarity[2, 1] = value
    with pytest.raises(ValueError, match="finite"):
        assign(similarity)
