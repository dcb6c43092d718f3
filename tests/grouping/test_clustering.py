from itertools import product

import pytest
import torch
from threadpoolctl import threadpool_limits

from mcsmoe.grouping.clusters import embed, exactly, most_important_first
from mcsmoe.grouping.group import GROUPERS
from mcsmoe.similarity.evidence import cosine
from tests.grouping.problems import problem, random_problems, vectors


def test_groups_are_numbered_by_their_most_used_member():
    labels = torch.tensor([7, 2, 7, 5, 2, 5])
    frequency = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.2, 0.1])
    assert most_important_first(labels, frequency).tolist() == [1, 2, 1, 0, 2, 0]  # 2 and 4 tie: the lower id is first


def test_missing_groups_are_split_off_where_members_are_least_alike():
    similarity = torch.tensor(
        [
            [1.0, 0.9, 0.8, 0.0, 0.0],
            [0.9, 1.0, 0.3, 0.0, 0.0],
            [0.8, 0.3, 1.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 1.0, 0.58],
            [0.0, 0.0, 0.0, 0.58, 1.0],
        ]
    )
    labels = torch.tensor([4, 4, 4, 1, 1])
    # Means: 0.85, 0.6, 0.55, 0.58, 0.58; without expert 2: 0.9, 0.9, alone, 0.58, 0.58.
    assert exactly(2, labels, similarity).tolist() == [1, 1, 1, 0, 0]
    assert exactly(3, labels, similarity).tolist() == [1, 1, 2, 0, 0]
    assert exactly(4, labels, similarity).tolist() == [1, 1, 2, 3, 0]
    assert exactly(5, labels, similarity).tolist() == [4, 1, 2, 3, 0]


def test_points_have_the_similarities_as_inner_products():
    similarity = cosine(vectors(8, 0, width=3) @ vectors(8, 0, width=3).T)
    points = embed(similarity)
    torch.testing.assert_close(points @ points.T, similarity, rtol=0, atol=1e-11)


def test_points_of_what_is_no_inner_product_have_the_nearest():
    noise = vectors(8, 0, width=8)
    similarity = (noise + noise.T).fill_diagonal_(1.0)
    points = embed(similarity)
    values, axes = torch.linalg.eigh(similarity)
    assert values.min() < -1
    torch.testing.assert_close(points @ points.T, axes @ values.clamp(min=0).diag() @ axes.T, rtol=0, atol=1e-11)


def test_points_do_not_depend_on_the_choice_of_eigenvectors():
    """Equal experts at 0.5 from each other: all but one eigenvalue are equal."""
    noise = 1e-15 * vectors(8, 0, width=8)
    similarity = torch.full((8, 8), 0.5, dtype=torch.float64).fill_diagonal_(1.0)
    assert torch.equal(embed(similarity + noise + noise.T), embed(similarity))


def test_twins_are_one_point():
    x = vectors(4, 0).repeat(2, 1)
    points = embed(cosine(x @ x.T))
    assert torch.equal(points[:4], points[4:])


@pytest.mark.parametrize("name", ["k-means", "spectral", "hierarchical-average", "hierarchical-ward"])
@pytest.mark.parametrize("groups", [2, 3, 4])
def test_planted_blocks_are_found(name: str, groups: int):
    centres = torch.eye(groups, 20, dtype=torch.float64) * 5
    planted = torch.arange(12) % groups
    x = centres[planted] + 0.5 * vectors(12, groups)
    assert GROUPERS[name](problem(cosine(x @ x.T), groups)).tolist() == planted.tolist()


@pytest.mark.parametrize(
    "name", [name for name in GROUPERS if name.startswith("hierarchical")] + ["k-means", "spectral"]
)
@pytest.mark.parametrize("groups", range(2, 8))
def test_rounding_errors_decide_no_tie(name: str, groups: int):
    ties = torch.full((8, 8), 0.5, dtype=torch.float64)
    ties[:4, :4] = ties[5:, 5:] = 0.75
    ties.fill_diagonal_(1.0)
    exact = GROUPERS[name](problem(ties, groups))
    for seed in range(5):
        noise = 1e-15 * vectors(8, seed, width=8)
        assert torch.equal(GROUPERS[name](problem(ties + noise + noise.T, groups)), exact)


def test_the_number_of_threads_decides_no_tie():
    """Many partitions are equally good: their spreads differ in the last bits, and these with the threads."""
    with threadpool_limits(1):
        one = [GROUPERS["k-means"](given).tolist() for given in random_problems(60)]
    with threadpool_limits(2):
        assert [GROUPERS["k-means"](given).tolist() for given in random_problems(60)] == one


@pytest.mark.parametrize("seed", range(5))
def test_k_means_finds_the_best_of_all_partitions(seed: int):
    """The spread Σ_C Σ_{i∈C} ‖x_i − mean_C‖² of E points is E − Σ_C Σ_{i,j∈C} s_ij / |C|."""
    similarity = cosine(vectors(7, seed, width=4) @ vectors(7, seed, width=4).T)

    def spread(labels: tuple[int, ...]) -> float:
        parts = [[e for e in range(7) if labels[e] == k] for k in range(3)]
        return 7 - sum(float(similarity[part][:, part].sum()) / len(part) for part in parts)

    found = tuple(GROUPERS["k-means"](problem(similarity, 3, seed=seed)).tolist())
    partitions = (labels for labels in product(range(3), repeat=7) if set(labels) == {0, 1, 2})
    assert spread(found) == pytest.approx(min(map(spread, partitions)), abs=1e-12)


@pytest.mark.parametrize("name", ["k-means", "spectral"])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_any_seed_does(name: str, seed: int):
    x = vectors(8, 0)
    assert len(GROUPERS[name](problem(cosine(x @ x.T), 3, seed=seed)).unique()) == 3


def test_k_means_of_fewer_points_than_groups():
    """Three different experts of six, five groups: twins stay together until no other is left."""
    x = vectors(3, 0).repeat(2, 1)
    labels = GROUPERS["k-means"](problem(cosine(x @ x.T), 5))
    assert len(labels.unique()) == 5
    assert int((labels[:3] == labels[3:]).sum()) == 1
