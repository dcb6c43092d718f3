"""Collection against a slow count by hand, and what must not change it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.calibration.watch import count
from mcsmoe.errors import CheckpointError, UnknownNameError
from mcsmoe.families import MoELayer, family_of
from tests.calibration.samples import ROWS, batches, exact_switch, samples
from tests.models import VOCABULARY, tiny_switch

ALSO = ["input-gram", "norms", "outputs", "pair-errors"]


def measure(model: Any, parts: list[dict[str, Tensor]], **options: Any) -> RoutingStatistics:
    family = family_of(model.config)
    return collect(model, family, family.layers(model.config), parts, **options)


def assert_close(a: RoutingStatistics, b: RoutingStatistics, tolerance: float = 1e-10) -> None:
    for name in a.layers:
        for key, value in a[name].tensors().items():
            torch.testing.assert_close(
                value, b[name].tensors()[key], rtol=tolerance, atol=tolerance, msg=f"{name} {key}"
            )


def by_hand(model: Any, layer: MoELayer, parts: list[dict[str, Tensor]]) -> LayerStatistics:
    """Token by token, expert by expert, from the inputs of the sparse block."""
    block = model.get_submodule(layer.path)
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    sums = LayerStatistics.zeros(layer.experts, layer.d_model, ALSO)
    assert sums.input_gram is not None
    assert sums.norms is not None
    assert sums.gated_norms is not None
    assert sums.all_outputs is not None
    assert sums.output_gram is not None
    assert sums.pair_errors is not None
    wi = torch.stack([block.experts[f"expert_{e}"].wi.weight.detach() for e in range(layer.experts)])
    wo = torch.stack([block.experts[f"expert_{e}"].wo.weight.detach() for e in range(layer.experts)])
    for part in parts:
        with torch.no_grad():
            model(**part)
        mask = part["attention_mask"].bool() if layer.stack == "encoder" else part["labels"] != -100
        for row, x_row in zip(mask, seen.pop()):
            for real, x in zip(row, x_row):
                if not real:
                    continue
                h = block.router.classifier.weight.detach() @ x
                e, g = int(h.argmax()), h.softmax(0).max()
                y = wo[e] @ (wi[e] @ x).relu()
                sums.tokens += 1
                sums.coselection[e, e] += 1
                sums.gates[e] += g
                sums.norms[e] += y.norm()
                sums.gated_norms[e] += g * y.norm()
                sums.logits_gram += torch.outer(h, h)
                sums.input_gram += torch.outer(x, x)
                sums.input_sums[e] += x
                sums.input_abs_sums[e] += x.abs()
                sums.input_square_sums[e] += x**2
                every = torch.stack([wo[i] @ (wi[i] @ x).relu() for i in range(layer.experts)])
                sums.all_outputs += every
                sums.output_gram += every @ every.T
                for j in range(layer.experts):
                    pair = (wo[e] + wo[j]) / 2 @ ((wi[e] + wi[j]) / 2 @ x).relu()
                    sums.pair_errors[e, j] += (y - pair).square().sum()
    handle.remove()
    return sums


def test_against_a_count_by_hand():
    model = exact_switch()
    parts = batches(samples(), 3)
    found = measure(model, parts, also=ALSO)
    layers = family_of(model.config).layers(model.config)
    assert list(found.layers) == [layer.name for layer in layers]
    expected = RoutingStatistics({layer.name: by_hand(model, layer, parts) for layer in layers})
    assert_close(found, expected)


@pytest.mark.parametrize("size", [1, 2, 5, ROWS])
def test_batch_size_order_and_padding_change_nothing(size: int):
    model = exact_switch()
    reference = measure(model, batches(samples(), 3), also=ALSO)
    assert_close(measure(model, batches(samples(), size), also=ALSO), reference)
    assert_close(measure(model, batches(samples()[::-1], size), also=ALSO), reference)
    assert_close(measure(model, batches(samples(), size, extra=4), also=ALSO), reference)


def test_padding_never_counts_and_no_token_is_dropped():
    rows = samples()
    found = measure(exact_switch(), batches(rows, 3))
    encoder, decoder = (sum(len(row[i]) for row in rows) for i in (0, 1))
    for name, layer in found.layers.items():
        assert int(layer.tokens) == int(layer.counts.sum()) == (encoder if name.startswith("enc") else decoder)


def test_shards_add_up():
    model, parts = exact_switch(), batches(samples(), 2)
    assert_close(measure(model, parts[::2]) + measure(model, parts[1::2]), measure(model, parts))


def test_processes_share_the_sample():
    model, parts = exact_switch(), batches(samples(), 2)
    theirs = measure(model, parts[1::2], also=ALSO)
    other = iter([value for layer in theirs.layers.values() for value in layer.tensors().values()])
    both = measure(model, parts[::2], also=ALSO, reduce=lambda value: value + next(other))
    assert_close(both, measure(model, parts, also=ALSO))


def test_tokens_over_capacity_stay_with_the_expert_they_selected():
    full, cramped = exact_switch(), exact_switch(expert_capacity=1)
    # The first sparse layer sees the same inputs, whatever the capacity.
    parts = batches(samples(), 3)
    roomy, tight = (measure(model, parts, also=["norms"])["encoder.1"] for model in (full, cramped))
    assert torch.equal(roomy.counts, tight.counts)
    for name in ("norms", "gated_norms"):
        torch.testing.assert_close(roomy.tensors()[name], tight.tensors()[name])


@pytest.mark.parametrize("capacity", [1, 1000])
def test_looking_at_outputs_leaves_what_the_model_does_with_them(capacity: int):
    """Layers behind the first see what the experts before them gave, without what capacity cuts off."""
    model, parts = exact_switch(expert_capacity=capacity), batches(samples(), 3)
    plain, looked = (measure(model, parts, also=also) for also in ([], ["norms"]))
    for name, layer in plain.layers.items():
        for key, value in layer.tensors().items():
            torch.testing.assert_close(value, looked[name].tensors()[key], rtol=0, atol=1e-12)


def test_no_expert_runs_twice_on_a_token():
    model, parts = exact_switch(), batches(samples(), 3)
    rows = []
    for layer in family_of(model.config).layers(model.config):
        for expert in model.get_submodule(layer.experts_path).values():
            expert.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    measure(model, parts, also=["norms"])
    positions = sum(part[key].numel() for part in parts for key in ("input_ids", "labels"))
    assert sum(rows) == 2 * positions  # two sparse layers in each stack, and one expert a token


def test_an_entry_that_nobody_knows_is_refused():
    with pytest.raises(
        UnknownNameError, match="'activations'; known: correlation, exact-fisher, gradients, input-gram, norms"
    ):
        measure(exact_switch(), batches(samples(), 3), also=["activations"])


def test_measuring_twice_gives_the_same_and_leaves_the_model_alone():
    model = tiny_switch(dropout_rate=0.5, router_jitter_noise=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (measure(model, batches(samples(), 3), also=["norms"]) for _ in range(2))
    assert_close(first, second, 0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("also", [[], ["norms"]])
def test_nothing_stays_in_the_model_when_a_batch_fails(also: list[str]):
    model = tiny_switch()
    with pytest.raises(IndexError):
        measure(model, [{k: v + VOCABULARY for k, v in batches(samples(), 3)[0].items()}], also=also)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize(("also", "layer"), [(["norms"], "decoder.1"), ([], "decoder.3")])
def test_nan_is_reported_by_the_first_layer_that_shows_it(also: list[str], layer: str):
    """Where no output is looked at, that is the layer behind."""
    model = tiny_switch()
    with torch.no_grad():
        model.decoder.block[1].layer[2].mlp.experts["expert_0"].wo.weight[0, 0] = torch.nan
        model.decoder.block[1].layer[2].mlp.router.classifier.weight[0] += 10
    with pytest.raises(CheckpointError, match=f"{layer} are not finite"):
        measure(model, batches(samples(), 3), also=also)


def test_count_is_the_count_of_the_statistics():
    model, parts = tiny_switch(), batches(samples(), 3)
    family = family_of(model.config)
    counts = count(model, family, family.layers(model.config), parts)
    statistics = measure(model, parts)
    assert all(torch.equal(counts[name].double(), statistics[name].counts) for name in counts)
