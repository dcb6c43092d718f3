"""Collection against a slow count by hand, and what must not change it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mcsmoe.architectures.layer import MoELayer
from mcsmoe.architectures.registry import family_of
from mcsmoe.errors import CheckpointError
from mcsmoe.routing.collect import collect
from mcsmoe.routing.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.routing.watch import count, every_token
from tests.models import VOCABULARY, tiny_switch

ROWS = 7


def exact_switch(**changes: Any) -> Any:
    """A Switch that computes in float64 throughout, so that only the order of sums can make a difference."""
    model = tiny_switch(**changes).double()
    for module in model.modules():
        if hasattr(module, "jitter_noise"):
            module.dtype = torch.float64  # the configuration refuses float64 routers
        if hasattr(module, "variance_epsilon"):
            module.forward = lambda x, m=module: (  # the stock norm takes its variance in float32
                m.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.variance_epsilon)
            )
    return model


def samples(rows: int = ROWS) -> list[tuple[Tensor, Tensor]]:
    """Sources and targets of different lengths."""
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> Tensor:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(2, VOCABULARY, (length,), generator=generator)

    return [(draw(4, 15), draw(2, 9)) for _ in range(rows)]


def batches(rows: list[tuple[Tensor, Tensor]], size: int, extra: int = 0) -> list[dict[str, Tensor]]:
    """Right-padded batches, with `extra` columns of padding."""

    def pad(values: tuple[Tensor, ...], fill: int) -> Tensor:
        width = max(len(v) for v in values) + extra
        return torch.stack([torch.nn.functional.pad(v, (0, width - len(v)), value=fill) for v in values])

    made = []
    for start in range(0, len(rows), size):
        sources, targets = zip(*rows[start : start + size])
        mask = pad(tuple(torch.ones_like(s) for s in sources), 0)
        made.append({"input_ids": pad(sources, 0), "attention_mask": mask, "labels": pad(targets, -100)})
    return made


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
    sums = LayerStatistics.zeros(layer.experts, layer.d_model, layer.d_ff)
    assert sums.hidden_gram is not None
    assert sums.output_hidden is not None
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
                expert = block.experts[f"expert_{e}"]
                z = (expert.wi.weight.detach() @ x).relu()
                y = expert.wo.weight.detach() @ z
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
                sums.output_sums[e] += y
                sums.hidden_gram[e] += torch.outer(z, z)
                sums.output_hidden[e] += torch.outer(y, z)
    handle.remove()
    return sums


def test_against_a_count_by_hand():
    model = exact_switch()
    parts = batches(samples(), 3)
    found = measure(model, parts, activations=True)
    layers = family_of(model.config).layers(model.config)
    assert list(found.layers) == [layer.name for layer in layers]
    expected = RoutingStatistics({layer.name: by_hand(model, layer, parts) for layer in layers})
    assert_close(found, expected)


@pytest.mark.parametrize("size", [1, 2, 5, ROWS])
def test_batch_size_order_and_padding_change_nothing(size: int):
    model = exact_switch()
    reference = measure(model, batches(samples(), 3), activations=True)
    assert_close(measure(model, batches(samples(), size), activations=True), reference)
    assert_close(measure(model, batches(samples()[::-1], size), activations=True), reference)
    assert_close(measure(model, batches(samples(), size, extra=4), activations=True), reference)


def test_padding_never_counts_and_no_token_is_dropped():
    rows = samples()
    found = measure(exact_switch(), batches(rows, 3))
    encoder, decoder = (sum(len(row[i]) for row in rows) for i in (0, 1))
    for name, layer in found.layers.items():
        assert int(layer.tokens) == int(layer.counts.sum()) == (encoder if name.startswith("enc") else decoder)


def test_every_token_counts_padding_too():
    part = batches(samples(), ROWS)
    found = measure(exact_switch(), part, masks=every_token)
    assert int(found["encoder.1"].tokens) == part[0]["input_ids"].numel()


def test_shards_add_up():
    model, parts = exact_switch(), batches(samples(), 2)
    assert_close(measure(model, parts[::2]) + measure(model, parts[1::2]), measure(model, parts))


def test_tokens_over_capacity_stay_with_the_expert_they_selected():
    full, cramped = exact_switch(), exact_switch(expert_capacity=1)
    # The first sparse layer sees the same inputs, whatever the capacity.
    roomy, tight = (measure(model, batches(samples(), 3))["encoder.1"] for model in (full, cramped))
    assert torch.equal(roomy.counts, tight.counts)
    torch.testing.assert_close(roomy.output_sums, tight.output_sums)


def test_measuring_twice_gives_the_same_and_leaves_the_model_alone():
    model = tiny_switch(dropout_rate=0.5, router_jitter_noise=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (measure(model, batches(samples(), 3)) for _ in range(2))
    assert_close(first, second, 0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_when_a_batch_fails():
    model = tiny_switch()
    with pytest.raises(IndexError):
        measure(model, [{k: v + VOCABULARY for k, v in batches(samples(), 3)[0].items()}])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nan_is_reported_by_layer():
    model = tiny_switch()
    with torch.no_grad():
        model.decoder.block[1].layer[2].mlp.experts["expert_0"].wo.weight[0, 0] = torch.nan
        model.decoder.block[1].layer[2].mlp.router.classifier.weight[0] += 10
    with pytest.raises(CheckpointError, match=r"decoder\.1 are not finite"):
        measure(model, batches(samples(), 3))


def test_count_is_the_count_of_the_statistics():
    model, parts = tiny_switch(), batches(samples(), 3)
    family = family_of(model.config)
    counts = count(model, family, family.layers(model.config), parts)
    statistics = measure(model, parts)
    assert all(torch.equal(counts[name].double(), statistics[name].counts) for name in counts)
