"""Watching and differentiating a decoder-only model: prompts count, padding does not."""

from typing import Any

import pytest
import torch

from mcsmoe.calibration.gradients import Weight, _differentiate, rows
from mcsmoe.calibration.watch import count, real_tokens, watch
from mcsmoe.families import Place
from mcsmoe.tasks.batches import collate
from tests import causal
from tests.causal import FAMILY, TOP_K, batches, tiny_mixtral


def lengths() -> list[int]:
    return [len(row.source) + len(row.target) - 1 for row in causal.rows()]


def test_every_real_token_is_seen_once_and_no_padding():
    model = tiny_mixtral()
    layers = FAMILY.layers(model.config)
    seen: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    watch(model, FAMILY, layers, batches(7), lambda layer, x, routing: seen[layer.name].append(x))
    alone: dict[str, list[torch.Tensor]] = {layer.name: [] for layer in layers}
    watch(model, FAMILY, layers, batches(1), lambda layer, x, routing: alone[layer.name].append(x))
    for name, parts in seen.items():
        assert len(torch.cat(parts)) == sum(lengths())
        torch.testing.assert_close(torch.cat(parts), torch.cat(alone[name]))


def test_experts_are_counted_as_the_model_chooses_them():
    model = tiny_mixtral()
    layers = FAMILY.layers(model.config)
    found = count(model, FAMILY, layers, batches(4))
    for place, layer in enumerate(layers):
        expected = torch.zeros(layer.experts, dtype=torch.int64)
        for row in causal.rows():
            ids = torch.tensor([[*row.source, *row.target[:-1]]])
            with torch.no_grad():
                logits = model(input_ids=ids, output_router_logits=True).router_logits[place]
            expected += logits.topk(TOP_K).indices.flatten().bincount(minlength=layer.experts)
        assert found[layer.name].tolist() == expected.tolist()
        assert int(found[layer.name].sum()) == TOP_K * sum(lengths())


def test_prompts_are_real_tokens_and_padding_is_not():
    (batch,) = batches(7)
    assert real_tokens(batch, causal=True)["decoder"].sum() == sum(lengths()) < batch["input_ids"].numel()


def test_rows_are_cut_to_their_length_and_those_without_labels_left_out():
    (batch,) = batches(7)
    batch["labels"][1] = -100
    found = list(rows([batch], causal=True))
    expected = [collate([row], 0, causal=True) for i, row in enumerate(causal.rows()) if i != 1]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["gradient", "fisher"])
def test_gradients_are_those_of_the_models_own_loss(kind: str):
    model: Any = tiny_mixtral()
    weight = model.model.layers[0].mlp.gate.weight
    expected = torch.zeros_like(weight)
    for row in causal.rows():
        ids = torch.tensor([[*row.source, *row.target]])
        labels = ids.clone()
        labels[:, : len(row.source)] = -100
        (gradient,) = torch.autograd.grad(len(row.target) * model(input_ids=ids, labels=labels).loss, weight)
        expected += gradient if kind == "gradient" else gradient.square()
    place = Weight(weight, 0, Place("model.layers.{expert}.mlp.gate.weight"))
    found = _differentiate(model, [place], batches(3), ["gradient", "fisher"])[kind][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
