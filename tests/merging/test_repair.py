from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcsmoe.errors import StatisticsError
from mcsmoe.families import Expert
from mcsmoe.merging.rules import RULES
from tests.alignment.experts import GATED, PLAIN
from tests.merging.members import group, make_layer, random_experts, tokens

LAYOUTS = {"plain": PLAIN, "gated": GATED}
PROJECTIONS: dict[str, dict[str, str | None]] = {"plain": {"wi": None}, "gated": {"w1": "b1", "w3": "b3"}}


def pre_activation(expert: Expert, weight: str, bias: str | None, x: Tensor) -> Tensor:
    found = x @ expert[weight].double().T
    return found if bias is None else found + expert[bias].double()


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("top_k", [1, 2])
def test_moments_of_pre_activations_are_the_means_of_the_members(kind: str, top_k: int):
    layout, projections = LAYOUTS[kind], PROJECTIONS[kind]
    layer, x = make_layer(layout, top_k=top_k), tokens(300).double()
    experts = random_experts(layout, 3, torch.float64)
    members = group(experts, layer, x)
    found, average = RULES["repair"](members), RULES["average"](members)
    for weight, bias in projections.items():
        of_members = torch.stack([pre_activation(expert, weight, bias, x) for expert in experts])
        deviation = of_members.std(1, correction=0).mean(0)
        ours, plain = (pre_activation(e, weight, bias, x) for e in (found, average))
        torch.testing.assert_close(ours.std(0, correction=0), deviation, rtol=0, atol=1e-6)
        assert (plain.std(0, correction=0) < deviation - 0.01).all()
        if bias is not None:
            torch.testing.assert_close(ours.mean(0), of_members.mean((0, 1)), rtol=0, atol=1e-6)
    for name in layout.keys() - projections.keys() - set(projections.values()):
        assert torch.equal(found[name], average[name])


def test_a_neuron_that_never_varies_is_only_averaged():
    layer, x = make_layer(GATED), tokens(100)
    x[:, 0] = 0.1  # constant, and not exactly representable
    experts = random_experts(GATED, 2)
    for i, expert in enumerate(experts):
        expert["w1"][4] = torch.eye(6)[0] * (i + 1)
    members = group(experts, layer, x)
    found, average = RULES["repair"](members), RULES["average"](members)
    assert torch.equal(found["w1"][4], average["w1"][4])
    torch.testing.assert_close(found["b1"][4], average["b1"][4])
    assert not torch.equal(found["w1"][5], average["w1"][5])


def test_opposite_neurons_that_cancel_stay_cancelled():
    layer, experts = make_layer(PLAIN), random_experts(PLAIN, 2)
    experts[1]["wi"][3] = -experts[0]["wi"][3]
    found = RULES["repair"](group(experts, layer))
    assert not found["wi"][3].any()


def test_what_it_needs_is_named():
    layer = make_layer(PLAIN)
    members = group(random_experts(PLAIN, 2), layer)
    bare = replace(members, statistics=replace(members.statistics, input_gram=None))
    needed = RULES.fact("repair", "needs")
    with pytest.raises(StatisticsError, match=f"^rule 'repair' needs '{needed}', which was not collected$"):
        RULES["repair"](bare)
