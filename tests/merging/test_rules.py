import pytest
import torch

from mcsmoe.merging.registry import RULES
from tests.alignment.experts import GATED, random_expert


def members(count: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [{k: v.to(dtype) for k, v in random_expert(GATED, 5, 3, generator).items()} for _ in range(count)]


def test_frequency_weighs_by_use():
    experts = members(3)
    merged = RULES["frequency"](experts, torch.tensor([0.1, 0.3, 0.0], dtype=torch.float64))
    for name, value in merged.items():
        torch.testing.assert_close(value, 0.25 * experts[0][name] + 0.75 * experts[1][name])


def test_average_does_not():
    experts = members(3)
    merged = RULES["average"](experts, torch.tensor([0.1, 0.3, 0.0], dtype=torch.float64))
    for name, value in merged.items():
        torch.testing.assert_close(value, sum(e[name] for e in experts) / 3)


def test_a_group_that_nobody_uses_is_the_plain_mean_and_not_zero():
    experts = members(2)
    merged = RULES["frequency"](experts, torch.zeros(2, dtype=torch.float64))
    for name, value in merged.items():
        torch.testing.assert_close(value, (experts[0][name] + experts[1][name]) / 2)


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("weight", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_member_is_bit_identical(rule: str, weight: float, dtype: torch.dtype):
    (expert,) = members(1, dtype)
    merged = RULES[rule]([expert], torch.tensor([weight], dtype=torch.float64))
    assert all(torch.equal(merged[name], expert[name]) for name in expert)


@pytest.mark.parametrize("rule", list(RULES))
def test_low_precision_is_summed_in_high(rule: str):
    # 256 + 255 × 1 in bfloat16 would stay at 256.
    experts = [{"wi": torch.full((1, 1), 256.0 if i == 0 else 1.0, dtype=torch.bfloat16)} for i in range(256)]
    merged = RULES[rule](experts, torch.full((256,), 0.1, dtype=torch.float64))["wi"]
    assert merged.dtype == torch.bfloat16
    assert merged.item() == pytest.approx(511 / 256, rel=4e-3)


@pytest.mark.parametrize("rule", list(RULES))
def test_members_are_left_alone(rule: str):
    experts = members(2)
    before = [{k: v.clone() for k, v in e.items()} for e in experts]
    RULES[rule](experts, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert all(torch.equal(e[k], b[k]) for e, b in zip(experts, before) for k in e)
