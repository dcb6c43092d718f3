import pytest
import torch

from mcsmoe.alignment.matching import (
    ActivationMoments,
    Match,
    activation_similarity,
    length,
    match,
    permute,
    weight_similarity,
)
from mcsmoe.families import Expert
from tests.alignment.experts import PLAIN, random_expert


def moments(z: torch.Tensor, u: torch.Tensor, parts: int = 3) -> ActivationMoments:
    sums = ActivationMoments.zeros(z.shape[1])
    for a, b in zip(z.chunk(parts), u.chunk(parts)):
        sums.add(a, b)
    return sums


def weight_match(reference: Expert, expert: Expert) -> Match:
    scale = length(reference, PLAIN) * length(expert, PLAIN)
    return match(weight_similarity(reference, expert, PLAIN), scale)


def activation_match(found: ActivationMoments) -> Match:
    return match(activation_similarity(found), len(found.reference))


def test_weight_matching_of_a_permuted_copy_reaches_one():
    generator = torch.Generator().manual_seed(0)
    reference = random_expert(PLAIN, 30, 8, generator)
    perm = torch.randperm(30, generator=generator)
    found = weight_match(reference, permute(reference, PLAIN, perm))
    assert torch.equal(found.perm, perm.argsort())
    assert found.before < 0.5
    assert found.after == pytest.approx(1)


def test_an_expert_of_zeros_matches_at_zero():
    reference = random_expert(PLAIN, 4, 3, torch.Generator().manual_seed(0))
    zero = {name: torch.zeros_like(value) for name, value in reference.items()}
    assert weight_match(reference, zero).after == 0


def test_activation_cost_is_the_correlation():
    generator = torch.Generator().manual_seed(1)
    z, u = (torch.randn(50, 6, generator=generator, dtype=torch.float64) + 3 for _ in range(2))
    expected = torch.corrcoef(torch.cat([z, u], 1).T)[:6, 6:]
    torch.testing.assert_close(activation_similarity(moments(z, u)), expected)


def test_activation_matching_finds_a_planted_permutation():
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(200, 12, generator=generator).relu()
    perm = torch.randperm(12, generator=generator)
    found = activation_match(moments(z, 2 * z[:, perm] + 1))
    assert torch.equal(found.perm, perm.argsort())
    assert found.after == pytest.approx(1)


def test_a_unit_that_never_varies_correlates_with_nothing():
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(50, 4, generator=generator)
    z[:, 1] = 0.1  # constant, but not exactly representable
    cost = activation_similarity(moments(z, z))
    assert cost.isfinite().all()
    assert not cost[1].any()
    assert sorted(activation_match(moments(z, z)).perm.tolist()) == [0, 1, 2, 3]


def test_no_token_at_all():
    found = activation_match(ActivationMoments.zeros(3))
    assert sorted(found.perm.tolist()) == [0, 1, 2]
    assert found.after == 0
