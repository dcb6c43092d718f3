"""The activations of experts on the tokens of their layer."""

import pytest
import torch

from mcsmoe.alignment import activations as module
from mcsmoe.alignment.activations import activation_moments, activations, pair_moments
from mcsmoe.alignment.matching import permute
from mcsmoe.alignment.permute import activation_matches
from mcsmoe.calibration.observer import LayerTokens
from mcsmoe.families import Layout
from mcsmoe.families.experts import hidden
from tests.alignment.experts import GATED, PLAIN, RELU, InMemory, noisy, random_expert
from tests.merging.members import D, F, make_layer, random_experts, tokens


@pytest.mark.parametrize("layout", [PLAIN, GATED], ids=["plain", "gated"])
def test_activations_of_several_experts_in_parts(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    experts, x = random_experts(layout, 3), tokens(20)
    parts = list(activations(make_layer(layout), experts, x))
    assert [len(part) for part in parts] == [7, 7, 6]
    expected = torch.cat([hidden(expert, layout, RELU, x) for expert in experts], 1)
    torch.testing.assert_close(torch.cat(parts), expected)


def test_low_precision_is_computed_in_high():
    layer, x = make_layer(PLAIN), tokens(20).bfloat16()
    a, b = random_experts(PLAIN, 2, torch.bfloat16)
    found = activation_moments(layer, x, a, b)
    z, u = (hidden({k: v.double() for k, v in e.items()}, PLAIN, RELU, x.double()) for e in (a, b))
    torch.testing.assert_close(found.cross, z.T @ u, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [PLAIN, GATED], ids=["plain", "gated"])
def test_planted_permutations_are_found(layout: Layout):
    generator = torch.Generator().manual_seed(0)
    layer = make_layer(layout, experts=4, top_k=2)
    reference = random_expert(layout, F, D, generator)
    orders = [torch.randperm(F, generator=generator) for _ in range(3)]
    experts = [permute(noisy(reference, 0.02, generator), layout, order) for order in orders]
    experts.insert(2, reference)
    index = torch.rand(400, 4, generator=generator).topk(2).indices
    matches = activation_matches(InMemory(experts, layer), layer, 2, LayerTokens(tokens(400), index))
    assert {e: m.perm.tolist() for e, m in matches.items()} == {
        e: order.argsort().tolist() for e, order in zip((0, 1, 3), orders)
    }
    assert all(match.after > 0.95 > match.before for match in matches.values())


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_pair_is_compared_on_the_tokens_of_either(top_k: int):
    layer, x = make_layer(PLAIN, experts=4, top_k=top_k), tokens(60)
    experts = random_experts(PLAIN, 4)
    index = torch.rand(60, 4, generator=torch.Generator().manual_seed(2)).topk(top_k).indices
    pairs = dict(pair_moments(InMemory(experts, layer), layer, LayerTokens(x, index), 2, [0, 3]))
    assert list(pairs) == [0, 3]
    for e, moments in pairs.items():
        rows = x[[t for t in range(60) if {2, e} & set(index[t].tolist())]]
        z, u = (hidden(experts[i], PLAIN, RELU, rows).double() for i in (2, e))
        assert moments.tokens == len(rows) < 60
        torch.testing.assert_close(moments.cross, z.T @ u)
        torch.testing.assert_close(moments.reference, z.sum(0))
        torch.testing.assert_close(moments.expert_square, u.square().sum(0))
