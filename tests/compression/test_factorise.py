import json

import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.compression.factorise import factorise
from tests.compression.settings import random
from tests.shared import GOLDEN, needs_golden

LOSPARSE = GOLDEN / "losparse"
WEIGHTS = ["wi_96x48", "wo_48x96", "decaying_64x64", "rank3_40x24"]


@pytest.mark.parametrize("shape", [(3, 24, 8), (3, 8, 24)])
def test_exact_at_the_start_and_best_of_its_rank(shape):
    weight = random(*shape)
    u, v, s = factorise(weight, 4)
    assert u.shape == (3, shape[1], 4)
    assert v.shape == (3, 4, shape[2])
    torch.testing.assert_close(u @ v + s, weight, rtol=0, atol=1e-6)
    values = torch.linalg.svdvals(weight)
    torch.testing.assert_close(s.square().sum((1, 2)), values[:, 4:].square().sum(1))  # Eckart–Young
    torch.testing.assert_close(u.square().sum(1), values[:, :4])  # √Σ on either side
    torch.testing.assert_close(v.square().sum(2), values[:, :4])


def test_low_precision_is_made_up_for_by_the_sparse_part():
    weight = random(2, 16, 12).bfloat16()
    u, v, s = factorise(weight, 3)
    assert {t.dtype for t in (u, v, s)} == {torch.bfloat16}
    error = (u.double() @ v.double() + s.double() - weight.double()).abs().max()
    assert error <= 2**-8 * s.double().abs().max()


def test_rank_0_leaves_the_weight_as_it_is():
    weight = random(3, 8, 16)
    u, v, s = factorise(weight, 0)
    assert (u.shape, v.shape) == ((3, 8, 0), (3, 0, 16))
    assert torch.equal(s, weight)
    assert s.data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("rank", [-1, 9])
def test_impossible_rank(rank):
    with pytest.raises(ValueError, match="rank"):
        factorise(random(1, 8, 16), rank)


@needs_golden
@pytest.mark.parametrize("name", WEIGHTS)
def test_golden_decomposition(name):
    tensors = load_file(LOSPARSE / "decomposition.safetensors")
    facts = json.loads((LOSPARSE / "decomposition.json").read_text())
    weight = tensors[f"{name}.weight"]
    torch.testing.assert_close(torch.linalg.svdvals(weight), tensors[f"{name}.S"], rtol=1e-5, atol=1e-5)
    cases = [key for key in facts if key.startswith(f"{name}.ratio=")]
    assert cases
    for key in cases:
        rank = facts[key]["reduced_rank"]
        u, v, s = factorise(weight[None], rank)
        torch.testing.assert_close((u @ v)[0], tensors[f"{key}.LR"], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(s[0], tensors[f"{key}.sparse"], rtol=1e-5, atol=2e-5)


@needs_golden
def test_golden_linear():
    golden = load_file(LOSPARSE / "single_linear.safetensors")
    u, v, s = factorise(golden["weight"][None], 5)  # the reference's rank for a ratio of 0.3
    x, low = golden["x"], u @ v
    torch.testing.assert_close(x @ low[0].T + golden["bias"], golden["y_lowrank_only"], rtol=1e-5, atol=3e-5)
    torch.testing.assert_close(x @ (low + s)[0].T + golden["bias"], golden["y_losparse"], rtol=1e-5, atol=3e-5)
