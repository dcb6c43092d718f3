"""What every merging rule promises, and the formulas of the simple ones."""

from dataclasses import replace

import pytest
import torch

from mcsmoe.alignment.matching import align
from mcsmoe.families import Layout, Role
from mcsmoe.families.experts import forward
from mcsmoe.merging.rules import RULES, combine
from tests.alignment.experts import GATED, PLAIN, RELU
from tests.merging.members import copies, group, make_layer, odd_expert, random_experts, tokens, unused

PAPER = {"frequency", "average", "reversed", "random", "fisher", "dominant", "repair", "zipit"}
SETS_ITS_OWN_ORDER = ("zipit", "zipit-activation")
THREE = [0.1, 0.3, 0.0]


def merged(rule: str, weights=THREE, layout: Layout = GATED):
    experts = random_experts(layout, len(weights))
    return experts, RULES[rule](group(experts, make_layer(layout), weights=weights))


def test_the_rules_of_the_paper_are_there():
    assert set(RULES) >= PAPER


@pytest.mark.parametrize(
    ("rule", "shares"),
    [
        ("frequency", [0.25, 0.75, 0.0]),
        ("average", [1 / 3, 1 / 3, 1 / 3]),
        ("reversed", [0.9 / 2.6, 0.7 / 2.6, 1 / 2.6]),
    ],
)
def test_linear_rules(rule: str, shares: list[float]):
    experts, found = merged(rule)
    for name, value in found.items():
        expected = sum(share * expert[name] for share, expert in zip(shares, experts))
        torch.testing.assert_close(value, expected)


def test_random_weights_are_convex_and_seeded():
    layer, experts = make_layer(GATED), random_experts(GATED, 3)
    members = group(experts, layer, weights=THREE)
    found = {seed: RULES["random"](replace(members, seed=seed)) for seed in (0, 0, 1)}
    for value in found.values():
        stack = torch.stack([expert["w1"].flatten() for expert in experts], 1).double()
        shares = torch.linalg.lstsq(stack, value["w1"].flatten().double()[:, None]).solution
        torch.testing.assert_close(stack @ shares, value["w1"].flatten().double()[:, None], rtol=1e-5, atol=1e-5)
        assert shares.min() > 0
        assert shares.sum() == pytest.approx(1, abs=1e-5)
    again = RULES["random"](members)
    assert all(torch.equal(again[name], found[0][name]) for name in again)
    assert not torch.equal(found[0]["w1"], found[1]["w1"])


def test_dominant_is_bit_identical():
    experts = random_experts(GATED, 3, torch.bfloat16)
    found = RULES["dominant"](replace(group(experts, make_layer(GATED)), dominant=1))
    assert all(torch.equal(found[name], experts[1][name]) for name in GATED)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("layout", [PLAIN, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("positive", [True, False], ids=["dead neuron", "all alive"])
def test_merging_permuted_copies_changes_nothing(rule: str, count: int, layout: Layout, positive: bool):
    """Equal neurons, a neuron of zeros and a dead one included, and on inputs that calibration did not see."""
    expert = odd_expert(layout)
    experts = copies(expert, layout, count)
    if rule not in SETS_ITS_OWN_ORDER:
        experts = [align(other, expert, layout) for other in experts]
    x = tokens(200)
    members = group(experts, make_layer(layout), x.abs() if positive else x)
    found = RULES[rule](members)
    new = tokens(50, seed=9)
    expected = forward(expert, layout, RELU, new)
    torch.testing.assert_close(forward(found, layout, RELU, new), expected, rtol=1e-5, atol=1e-5)


def test_that_would_show():
    """Copies that are not aligned do not average to themselves."""
    expert = odd_expert(GATED)
    found = RULES["average"](group(copies(expert, GATED, 2), make_layer(GATED)))
    new = tokens(50, seed=9)
    assert (forward(found, GATED, RELU, new) - forward(expert, GATED, RELU, new)).abs().max() > 0.1


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("layout", [PLAIN, GATED], ids=["plain", "gated"])
def test_a_group_that_nobody_uses_is_not_zero(rule: str, layout: Layout):
    found = RULES[rule](unused(group(random_experts(layout, 3), make_layer(layout))))
    for value in found.values():
        assert value.isfinite().all()
        assert (value != 0).all()


@pytest.mark.parametrize("rule", ["frequency", "average", "reversed", "fisher", "exact-fisher", "repair"])
def test_and_where_use_decides_it_is_the_plain_mean(rule: str):
    experts = random_experts(GATED, 3)
    found = RULES[rule](unused(group(experts, make_layer(GATED))))
    for name, value in found.items():
        torch.testing.assert_close(value, sum(e[name] for e in experts) / 3)


@pytest.mark.parametrize("rule", list(RULES))
def test_low_precision_is_summed_in_high(rule: str):
    """256 + 255 × 1 in bfloat16 would stay at 256."""
    layout = {"wi": Role.UP, "wo": Role.DOWN}
    layer, x = make_layer(layout, d=1, f=1), tokens(20, d=1)
    values = [256.0, *[1.0] * 255]
    low, high = (
        RULES[rule](group([{k: torch.full((1, 1), v, dtype=dtype) for k in layout} for v in values], layer, x))
        for dtype in (torch.bfloat16, torch.float64)
    )
    for name in layout:
        assert low[name].dtype == torch.bfloat16
        torch.testing.assert_close(low[name].double(), high[name], rtol=8e-3, atol=0)


@pytest.mark.parametrize("rule", list(RULES))
def test_dtypes_and_shapes_stay_and_members_are_left_alone(rule: str):
    experts = random_experts(GATED, 3, torch.bfloat16)
    before = [{k: v.clone() for k, v in e.items()} for e in experts]
    found = RULES[rule](group(experts, make_layer(GATED)))
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {k: (v.dtype, v.shape) for k, v in before[0].items()}
    assert all(torch.equal(e[k], b[k]) for e, b in zip(experts, before) for k in e)


def test_combine_with_a_single_weight_is_exact():
    experts = random_experts(GATED, 2)
    found = combine(experts, torch.tensor([0.0, 0.3], dtype=torch.float64))
    assert all(torch.equal(found[name], experts[1][name]) for name in GATED)
