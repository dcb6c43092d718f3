"""Gradients and Fisher information against plain backward passes, and what must not change them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mcsmoe.calibration import gradients as differentiate
from mcsmoe.calibration.gradients import GRADIENTS, Gradients, likely, rows, write_gradients
from mcsmoe.errors import CheckpointError, StatisticsError
from mcsmoe.families import MoELayer, family_of
from tests.calibration.samples import Row, batches, exact_switch, kill, samples
from tests.mutations import COUNT, mutated, right_or_one_line

VOCABULARY = 9
BOTH = ["gradients", "exact-fisher"]
KINDS_WRITTEN = ["gradient", "fisher", "exact-fisher"]
SMALL: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 16, "d_ff": 12, "num_heads": 2, "num_experts": 4}


def model_and_layers(**changes: Any) -> tuple[Any, list[MoELayer]]:
    model = exact_switch(**SMALL | changes)
    return model, family_of(model.config).layers(model.config)


def few(count: int) -> list[Row]:
    """Rows with two or three labels."""
    return [(source, target[:3]) for source, target in samples(count, VOCABULARY)]


def write(directory: Path, parts: list[dict[str, Tensor]], also: list[str], **options: Any) -> Gradients:
    directory.mkdir(exist_ok=True)
    model, layers = model_and_layers()
    write_gradients(directory, model, layers, parts, also, **options)
    return Gradients(directory)


def by_parameter(found: Gradients, kind: str, layers: list[MoELayer]) -> dict[str, Tensor]:
    """What is on disk, by the model's name of a parameter."""
    return {
        layer.places[name].name(e): value
        for layer in layers
        for e in range(layer.experts)
        for name, value in found.read(kind, layer, e).items()
    }


def assert_gradients(found: Gradients, kind: str, layers: list[MoELayer], expected: dict[str, Tensor]) -> None:
    """`expected`: by the model's name of a parameter."""
    assert any(value.any() for value in expected.values())
    for name, value in by_parameter(found, kind, layers).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def backward(model: Any, value: Tensor, retain: bool = False) -> dict[str, Tensor]:
    """Gradients of all experts; zeros where there is none."""
    model.zero_grad()
    value.backward(retain_graph=retain)
    named = {name: p for name, p in model.named_parameters() if ".experts." in name}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()}


def test_gradient_of_the_summed_loss_of_a_whole_batch(tmp_path: Path):
    model, layers = model_and_layers()
    (batch,) = batches(samples(5, VOCABULARY), 5, extra=2)
    logits = model(**batch).logits.flatten(0, 1)
    loss = F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100, reduction="sum")
    assert_gradients(write(tmp_path, [batch], ["gradients"]), "gradient", layers, backward(model, loss))


def test_empirical_fisher_squares_each_row(tmp_path: Path):
    model, layers = model_and_layers()
    parts = batches(samples(4, VOCABULARY), 1)
    expected: dict[str, Tensor] = {}
    for part in parts:
        loss = F.cross_entropy(model(**part).logits[0], part["labels"][0], reduction="sum")
        for name, value in backward(model, loss).items():
            expected[name] = expected.get(name, torch.zeros(())) + value**2
    assert_gradients(write(tmp_path, batches(samples(4, VOCABULARY), 3), ["gradients"]), "fisher", layers, expected)


def test_exact_fisher_is_the_expectation_over_the_models_own_labels(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(differentiate, "MASS", 1 - 1e-14)
    model, layers = model_and_layers()
    expected: dict[str, Tensor] = {}
    for part in batches(few(2), 1):
        scores = model(**part).logits[0].log_softmax(-1)
        for score in scores:
            for log_p in score:
                for name, value in backward(model, log_p, retain=True).items():
                    expected[name] = expected.get(name, torch.zeros(())) + log_p.detach().exp() * value**2
    assert_gradients(write(tmp_path, batches(few(2), 2), ["exact-fisher"]), "exact-fisher", layers, expected)


def test_likely_tokens():
    p = torch.tensor([[0.0005, 0.3, 0.6995, 0], [0.0005, 0.3, 0.6975, 0.002], [0.25, 0.25, 0.25, 0.25], [0, 1, 0, 0]])
    assert likely(p).int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]


def test_batches_and_padding_change_no_bit(tmp_path: Path):
    write(tmp_path / "0", batches(few(3), 1), BOTH)
    write(tmp_path / "1", batches(few(3), 2, extra=4), BOTH)
    assert (tmp_path / "0" / GRADIENTS).read_bytes() == (tmp_path / "1" / GRADIENTS).read_bytes()


@pytest.mark.parametrize("options", [{"block_bytes": 1}, {"block_bytes": 10**5}])
def test_blocks_change_nothing(tmp_path: Path, options: dict[str, int], monkeypatch):
    _, layers = model_and_layers()
    whole = write(tmp_path / "0", batches(few(2), 1), BOTH)
    monkeypatch.setattr(differentiate, "BATCH_BYTES", 0)
    blocks = write(tmp_path / "1", batches(few(2), 1), BOTH, **options)
    for kind in KINDS_WRITTEN:
        assert_gradients(blocks, kind, layers, by_parameter(whole, kind, layers))


def test_rows_are_cut_to_their_length_and_those_without_labels_left_out():
    given = few(3)
    (batch,) = batches(given, 3, extra=2)
    batch["labels"][1] = -100
    found = list(rows([batch], causal=False))
    assert [row["input_ids"].tolist() for row in found] == [[given[i][0].tolist()] for i in (0, 2)]
    assert [row["labels"].tolist() for row in found] == [[given[i][1].tolist()] for i in (0, 2)]
    assert all(row["attention_mask"].all() for row in found)


def test_an_expert_that_no_token_reaches_has_zeros(tmp_path: Path):
    model, layers = model_and_layers()
    kill(model, 2)
    write_gradients(tmp_path, model, layers, batches(samples(3, VOCABULARY), 3), ["gradients"])
    for kind in ("gradient", "fisher"):
        for layer in layers:
            assert not any(value.any() for value in Gradients(tmp_path).read(kind, layer, 2).values())


def test_processes_share_the_rows(tmp_path: Path):
    parts = batches(few(4), 1)
    whole = write(tmp_path / "whole", parts, BOTH)
    # The other process writes nothing, and comes to the same sums in the same order.
    model, layers = model_and_layers()
    theirs: list[Tensor] = []

    def give(value: Tensor) -> Tensor:
        theirs.append(value)
        return value

    write_gradients(None, model, layers, parts[1::2], BOTH, reduce=give, block_bytes=1)
    other = iter(theirs)
    both = write(tmp_path / "both", parts[::2], BOTH, reduce=lambda value: value + next(other), block_bytes=1)
    assert next(other, None) is None
    for kind in KINDS_WRITTEN:
        assert_gradients(both, kind, layers, by_parameter(whole, kind, layers))


def test_the_model_is_left_alone(tmp_path: Path):
    model, layers = model_and_layers(dropout_rate=0.5, router_jitter_noise=0.5)
    model.train()
    with torch.no_grad():
        write_gradients(tmp_path, model, layers, batches(few(2), 2), ["gradients"])
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    write(tmp_path / "plain", batches(few(2), 2), ["gradients"])
    assert (tmp_path / GRADIENTS).read_bytes() == (tmp_path / "plain" / GRADIENTS).read_bytes()


def test_single_precision_is_the_least(tmp_path: Path):
    model, layers = model_and_layers()
    write_gradients(tmp_path, model.bfloat16(), layers, batches(few(2), 2), BOTH)
    for kind in KINDS_WRITTEN:
        assert {value.dtype for value in Gradients(tmp_path).read(kind, layers[0], 0).values()} == {torch.float32}


@pytest.mark.parametrize(("kind", "entry"), [("gradient", "gradients"), ("exact-fisher", "exact-fisher")])
def test_what_was_not_collected_is_named(tmp_path: Path, kind: str, entry: str):
    _, layers = model_and_layers()
    with pytest.raises(CheckpointError, match=f"no {kind} of {layers[0].name}; '{entry}' was not collected"):
        Gradients(tmp_path).read(kind, layers[0], 0)
    found = write(tmp_path, batches(few(1), 1), [{"gradients": "exact-fisher"}.get(entry, "gradients")])
    with pytest.raises(CheckpointError, match=f"'{entry}' was not collected"):
        found.read(kind, layers[0], 0)


def test_gradients_that_cannot_be_used_are_one_line(tmp_path: Path):
    layer = model_and_layers()[1][0]
    shapes, place = layer.shapes(), Gradients.key("fisher", layer.name, 0, "wi")

    def read() -> Tensor:
        assert Gradients(tmp_path).holds("exact-fisher") is False
        return Gradients(tmp_path).tensor("fisher", layer, 0, "wi")

    for wrong in (torch.ones(shapes["wi"])[:-1], torch.full(shapes["wi"], torch.nan)):
        save_file({place: wrong}, tmp_path / GRADIENTS)
        with pytest.raises(StatisticsError, match="another shape than its expert 0, or holds NaN or infinity"):
            read()
    save_file({place: torch.ones(shapes["wi"])}, tmp_path / GRADIENTS)
    assert read().eq(1).all()
    whole = (tmp_path / GRADIENTS).read_bytes()
    for seed in range(COUNT):
        (tmp_path / GRADIENTS).write_bytes(mutated(whole, seed))
        with right_or_one_line():
            read()
