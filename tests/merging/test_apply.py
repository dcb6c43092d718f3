"""One group of a plan: aligned to its reference, and handed to the rule with all that rules may ask for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mcsmoe.alignment.matching import permute
from mcsmoe.calibration.gradients import GRADIENTS, Gradients
from mcsmoe.calibration.observer import LayerTokens
from mcsmoe.errors import CheckpointError
from mcsmoe.families import Expert, Layout
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import merge_group
from tests.alignment.experts import GATED, PLAIN, InMemory, noisy, random_expert
from tests.merging.material import nothing_measured
from tests.merging.members import D, F, make_layer, random_experts, tokens

GROUP = Group(3, (1, 2, 3), (0.1, 0.2, 0.3))


def plan(rule: str, alignment: str, reference: str = "dominant") -> Plan:
    return Plan("test", rule, alignment, reference, {"encoder.1": LayerPlan((GROUP,), merged=True)})


def related(layout: Layout) -> tuple[list[Expert], list[Tensor]]:
    """Four noisy copies of one expert, their neurons in other orders."""
    generator = torch.Generator().manual_seed(0)
    base = random_expert(layout, F, D, generator)
    orders = [torch.randperm(F, generator=generator) for _ in range(4)]
    return [permute(noisy(base, 0.02, generator), layout, order) for order in orders], orders


@pytest.mark.parametrize("layout", [PLAIN, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("alignment", ["weight", "activation"])
@pytest.mark.parametrize("reference", ["dominant", "first"])
def test_members_are_aligned_to_the_reference(layout: Layout, alignment: str, reference: str):
    layer = make_layer(layout, experts=4)
    experts, orders = related(layout)
    index = torch.randint(0, 4, (400, 1), generator=torch.Generator().manual_seed(1))
    given = nothing_measured([layer], lambda layer: LayerTokens(tokens(400), index))
    found = merge_group(InMemory(experts, layer), layer, GROUP, plan("average", alignment, reference), given)
    target = orders[{"dominant": 3, "first": 1}[reference]]
    moved = [permute(experts[e], layout, orders[e].argsort()[target]) for e in GROUP.members]
    for name, value in found.items():
        torch.testing.assert_close(value, sum(expert[name] for expert in moved) / 3)


def test_weights_decide_without_tokens():
    layer = make_layer(PLAIN, experts=4)
    source, given = InMemory(random_experts(PLAIN, 4), layer), nothing_measured([layer])
    merge_group(source, layer, GROUP, plan("average", "weight"), given)


def test_fisher_information_moves_with_the_neurons(tmp_path: Path):
    """What only expert 1 is sure of comes from it, wherever alignment puts that neuron."""
    layer = make_layer(GATED, experts=4)
    experts, orders = related(GATED)
    key = Gradients.key
    information = {
        key("fisher", layer.name, e, name): torch.full_like(value, 1e-6)
        for e, expert in enumerate(experts)
        for name, value in expert.items()
    }
    information[key("fisher", layer.name, 1, "w1")][4] = 1e6
    save_file(information, tmp_path / GRADIENTS)
    source, given = InMemory(experts, layer), nothing_measured([layer], directory=tmp_path)
    found = merge_group(source, layer, GROUP, plan("fisher", "weight"), given)
    place = int((orders[3] == orders[1][4]).nonzero())
    torch.testing.assert_close(found["w1"][place], experts[1]["w1"][4])
    with pytest.raises(CheckpointError, match=r"no exact-fisher of encoder\.1; 'exact-fisher' was not collected"):
        merge_group(source, layer, GROUP, plan("exact-fisher", "weight"), given)


def test_a_rule_knows_weights_and_the_dominant_member():
    layer, experts = make_layer(PLAIN, experts=4), random_experts(PLAIN, 4)

    def merged(rule: str, group: Group) -> Expert:
        return merge_group(InMemory(experts, layer), layer, group, plan(rule, "none"), nothing_measured([layer]))

    for group in (GROUP, Group(2, (0, 2), (0.0, 0.5))):
        assert all(
            torch.equal(value, experts[group.dominant][name]) for name, value in merged("dominant", group).items()
        )
        for name, value in merged("frequency", group).items():
            weighted = sum(w * experts[e][name] for e, w in zip(group.members, group.weights))
            torch.testing.assert_close(value, weighted / sum(group.weights))


def test_a_rule_sees_the_tokens_routed_to_any_member():
    layer, experts, x = make_layer(PLAIN, experts=4, top_k=2), random_experts(PLAIN, 4), tokens(400)
    index = torch.rand(400, 4, generator=torch.Generator().manual_seed(1)).topk(2).indices
    group = Group(2, (0, 2), (0.5, 0.5))
    routed = ((index == 0) | (index == 2)).any(1)
    x[~routed] = x[~routed] ** 3  # other neurons are alike on these

    def merged(x: Tensor, index: Tensor) -> Tensor:
        given = nothing_measured([layer], lambda layer: LayerTokens(x, index))
        return merge_group(InMemory(experts, layer), layer, group, plan("zipit-activation", "none"), given)["wi"]

    assert torch.equal(merged(x, index), merged(x[routed], index[routed]))
    assert not torch.equal(merged(x, index), merged(x, torch.zeros_like(index)))  # as if all were routed to expert 0


def test_a_rule_draws_anew_for_each_group_and_seed():
    layer, experts = make_layer(PLAIN, experts=4), random_experts(PLAIN, 4)

    def merged(seed: int, group: Group) -> Tensor:
        given = nothing_measured([layer], seed=seed)
        return merge_group(InMemory(experts, layer), layer, group, plan("random", "none"), given)["wi"]

    first, again = merged(0, GROUP), merged(0, GROUP)
    assert torch.equal(first, again)
    assert not torch.equal(first, merged(1, GROUP))
    assert not torch.equal(first, merged(0, Group(2, GROUP.members, GROUP.weights)))


def test_a_single_member_is_bit_identical():
    layer = make_layer(GATED, experts=4)
    experts = random_experts(GATED, 4, torch.bfloat16)
    source, given = InMemory(experts, layer), nothing_measured([layer])
    found = merge_group(source, layer, Group(2, (2,), (0.0,)), plan("repair", "activation"), given)
    assert all(torch.equal(found[name], experts[2][name]) for name in GATED)
