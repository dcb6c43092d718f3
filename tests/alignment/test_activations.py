"""The tokens of a layer, and the activations of its experts on them."""

import pytest
import torch
from torch import Tensor

from mcsmoe.alignment import activations as module
from mcsmoe.alignment.activations import (
    LayerTokens,
    LazyTokens,
    activation_moments,
    activations,
    layer_tokens,
    pair_moments,
)
from mcsmoe.alignment.matching import permute
from mcsmoe.alignment.permute import activation_matches
from mcsmoe.families import Layout, family_of
from mcsmoe.families.experts import forward, hidden
from tests.alignment.experts import GATED, PLAIN, RELU, InMemory, noisy, random_expert
from tests.merging.members import D, F, make_layer, random_experts, tokens
from tests.models import batch, tiny_switch


def labelled(rows: int, seed: int) -> dict[str, Tensor]:
    """A batch whose decoder inputs are made from labels, the last of them padded."""
    values = batch(rows, seed)
    labels = values.pop("decoder_input_ids")
    labels[:, 5:] = -100
    return values | {"labels": labels}


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_real_tokens_and_what_the_router_chose(stack: str):
    model = tiny_switch()
    family = family_of(model.config)
    layer = next(layer for layer in family.layers(model.config) if layer.stack == stack)
    batches = [labelled(5, 3), labelled(2, 4)]
    ((_, found),) = layer_tokens(model, family, [layer], batches)
    real = sum(int(b["attention_mask"].sum() if stack == "encoder" else (b["labels"] != -100).sum()) for b in batches)
    assert len(found.inputs) == len(found.index) == real
    block = model.get_submodule(layer.path)
    with torch.no_grad():
        outputs, logits = block(found.inputs[None]), block.router(found.inputs[None])[2]
    assert torch.equal(found.index[:, 0], logits[0].argmax(-1))
    e = int(found.index[0, 0])
    expert = {name: model.get_parameter(layer.places[name].name(e)) for name in layer.layout}
    gate = logits[0, 0].softmax(-1)[e]
    expected = gate * forward(expert, layer.layout, layer.activation, found.inputs[:1])
    torch.testing.assert_close(outputs[0, :1], expected)


def test_tokens_of_a_group_are_those_that_select_any_member():
    x = tokens(6)
    index = torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2], [2, 1], [3, 1]])
    found = LayerTokens(x, index).routed_to([0, 3])
    assert torch.equal(found, x[[0, 1, 2, 5]])


def test_nothing_is_loaded_before_it_is_asked_for_and_each_layer_runs_once():
    model = tiny_switch()
    family = family_of(model.config)
    first, second = family.layers(model.config)[:2]
    loads, ran = [], []
    for layer in (first, second):
        model.get_submodule(layer.router_path).register_forward_hook(lambda *_, name=layer.name: ran.append(name))

    def load():
        loads.append(1)
        return model, [labelled(2, 3)]

    lazy = LazyTokens(family, load)
    assert not loads
    found = [lazy(layer) for layer in (first, first)]
    assert found[0] is found[1]
    assert ran == [first.name]  # the pass went no further
    found += [lazy(layer) for layer in (second, first)]
    assert ran == [first.name, first.name, second.name, first.name]  # the second layer lies behind the first
    assert loads == [1]
    assert torch.equal(found[0].inputs, found[3].inputs)


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
