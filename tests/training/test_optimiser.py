"""AdamW in half precision, and which parameters decay."""

import pytest
import torch
from torch import nn

from mcsmoe.compression.factorise import factorise_model
from mcsmoe.families import family_of
from mcsmoe.families.experts import mapped_model
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.params import Training
from mcsmoe.training.optimiser import Optimiser, decays
from tests.compression.settings import compress
from tests.families.models import small_model
from tests.models import tiny_switch

SETTINGS = Training(epochs=1, batch_size=8, learning_rate=1e-5, weight_decay=0.1, warmup_steps=0, max_grad_norm=1.0)


def trained(dtype: torch.dtype, gradient: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of ones, and what AdamW moved, after 200 steps with the same gradient."""
    model = nn.ParameterDict({"weight": torch.ones(4, 4)}).to(dtype)
    optimiser = Optimiser(model, SETTINGS, 200)
    for step in range(1, 201):
        (model["weight"].float().sum() * gradient * optimiser.scale).backward()
        optimiser.step(step)
    weight = model["weight"].detach()
    return weight, optimiser.tensors().get("master.weight", weight)


@pytest.mark.parametrize(("dtype", "gradient"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-2), (torch.float16, 2e-8)])
def test_steps_below_the_precision_of_the_weights_add_up(dtype, gradient):
    """1e-5 is less than half of the way from 1 to the next number in both, and 2e-8 is 0 in float16."""
    (expected, _), (found, moved) = trained(torch.float32, gradient), trained(dtype, gradient)
    torch.testing.assert_close(1 - moved, 1 - expected, rtol=0.01, atol=0)
    assert found.dtype == dtype
    assert torch.equal(found, moved.to(dtype))


# Tensors of several axes in the model that are no matrices of weights, by their last two names.
ADDED = {
    "gpt_oss": {"experts.gate_up_proj_bias", "experts.down_proj_bias"},
    "ernie4_5_moe": {"moe_statics.e_score_correction_bias"},
    "jamba": {"mamba.A_log"},
    "mixtral": set(),
    "switch": {"relative_attention_bias.weight"},
}


@pytest.mark.parametrize("name", ADDED)
def test_matrices_decay_and_what_is_added_does_not(name):
    model = tiny_switch() if name == "switch" else small_model(name)
    several = {n: p for n, p in model.named_parameters() if p.ndim >= 2}
    still = {".".join(n.split(".")[-2:]) for n, p in several.items() if not decays(model, n, p)}
    assert still == ADDED[name]
    assert not any(decays(model, n, p) for n, p in model.named_parameters() if p.ndim < 2)


def test_experts_decay_by_their_roles_merged_and_factorised_too():
    stock = small_model("gpt_oss")
    layer = family_of(stock.config).layers(stock.config)[0]
    model = mapped_model(stock)
    for name, role in layer.layout.items():
        merged = family_of(stock.config).merged_tensor(layer, name)
        assert decays(model, merged, model.get_parameter(merged)) == role.is_weight, name
    factorise_model(model, compress(rank=4), FactorisedLinears.from_factors)
    parts = {n: decays(model, n, p) for n, p in model.named_parameters() if n.endswith((".u", ".v", ".values"))}
    assert len(parts) == 2 * 3 * 3
    assert all(parts.values())


def test_a_norm_of_each_head_does_not_decay():
    class HeadNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 8))

    model = nn.ModuleDict({"q": HeadNorm(), "proj": nn.Linear(8, 8)})
    assert [name for name, value in model.named_parameters() if decays(model, name, value)] == ["proj.weight"]


def test_only_what_decays_shrinks():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimiser = Optimiser(model, SETTINGS, 1)
    for value in model.parameters():
        value.grad = torch.zeros_like(value)
    optimiser.step(1)
    shrunk = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert shrunk == {"0.weight"}
    torch.testing.assert_close(model[0].weight, before["0.weight"] * (1 - 1e-5 * 0.1), rtol=1e-7, atol=0)
