import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcsmoe.calibration.collect import accumulate
from mcsmoe.calibration.statistics import ALSO, MEASURED, PROVENANCE, STATISTICS, LayerStatistics, RoutingStatistics
from mcsmoe.errors import StatisticsError, UnknownNameError
from mcsmoe.families import MoELayer, Routing
from mcsmoe.params import Collect
from tests.mutations import COUNT, mutated, right_or_one_line

ENTRIES = ["input-gram", "norms", "outputs", "pair-errors"]


def random_layer(seed: int, *also: str) -> LayerStatistics:
    """Sums over 20 tokens, each of which selects two of three experts."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sums, logits = LayerStatistics.zeros(3, 4, {*also} & {"input-gram"}), random(20, 3)
    routing = Routing(logits, logits.topk(2).indices, random(20, 2).abs())
    accumulate(sums, cast(MoELayer, SimpleNamespace(experts=3)), random(20, 4), routing, cast(Any, None))
    optional = LayerStatistics.zeros(3, 4, also).tensors()
    more = {name: random(*value.shape).abs() for name, value in optional.items() if name not in sums.tensors()}
    if "output_gram" in more:
        more["output_gram"] = more["output_gram"] @ more["output_gram"].T
    return replace(sums, **more)


def equal(a: LayerStatistics, b: LayerStatistics) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_everything_is_float64():
    assert {value.dtype for value in LayerStatistics.zeros(3, 4, ENTRIES).tensors().values()} == {torch.float64}


def test_adding_adds_every_sum():
    a, b = random_layer(0, *ENTRIES), random_layer(1, *ENTRIES)
    total = a + b
    for name, value in total.tensors().items():
        assert torch.equal(value, a.tensors()[name] + b.tensors()[name])


def test_only_what_is_asked_for_takes_memory():
    always = set(LayerStatistics.zeros(3, 4).tensors())
    extra = {
        "input-gram": {"input_gram"},
        "norms": {"norms", "gated_norms"},
        "outputs": {"all_outputs", "output_gram"},
        "pair-errors": {"pair_errors"},
    }
    for entry, names in extra.items():
        assert LayerStatistics.zeros(3, 4, [entry]).tensors().keys() == always | names
    assert LayerStatistics.zeros(3, 4, ENTRIES).tensors().keys() == always.union(*extra.values())


def test_what_can_be_collected_is_what_params_allow():
    assert get_args(get_args(Collect.model_fields["also"].annotation)[0]) == tuple(ALSO)
    LayerStatistics.zeros(3, 4, ALSO)
    with pytest.raises(
        UnknownNameError, match="'output'; known: correlation, exact-fisher, gradients, input-gram, norms, outputs"
    ):
        LayerStatistics.zeros(3, 4, ["output"])


def test_statistics_of_different_kinds_do_not_add():
    with pytest.raises(ValueError, match="pair_errors"):
        random_layer(0, "pair-errors") + random_layer(0)
    with pytest.raises(ValueError, match="layers"):
        RoutingStatistics({"a": random_layer(0)}) + RoutingStatistics({"b": random_layer(0)})


def test_measured_matrices_do_not_add():
    plain = RoutingStatistics({"a": random_layer(0)})
    measured = RoutingStatistics({"a": random_layer(0)}, measured={"a": {"correlation.lsa": torch.eye(3)}})
    for left, right in ((plain, measured), (measured, plain)):
        with pytest.raises(ValueError, match="whole sample"):
            left + right


def test_changing_the_sums_leaves_the_rest():
    measured = {"a": {"correlation.lsa": torch.eye(3)}}
    statistics = RoutingStatistics({"a": random_layer(0)}, {"seed": 3}, measured).map(lambda value: value * 2)
    assert torch.equal(statistics["a"].gates, random_layer(0).gates * 2)
    assert statistics.provenance == {"seed": 3}
    assert statistics.measured is measured


def test_frequency():
    layer = LayerStatistics.zeros(3, 4)
    assert layer.frequency.tolist() == [0, 0, 0]
    layer.coselection += torch.diag(torch.tensor([6.0, 0.0, 2.0]))
    assert layer.frequency.tolist() == [0.75, 0, 0.25]


@pytest.mark.parametrize("also", [[], ENTRIES])
@pytest.mark.parametrize("measured", [{}, {"decoder.1": {"correlation.lsa": torch.eye(3), "x": torch.ones(3, 3)}}])
def test_save_and_load(tmp_path: Path, also: list[str], measured: dict[str, dict[str, torch.Tensor]]):
    layers = {"encoder.1": random_layer(0, *also), "decoder.1": random_layer(1, *also)}
    statistics = RoutingStatistics(layers, {"seed": 3, "fingerprint": "ab"}, measured)
    statistics.save(tmp_path)
    first = [(tmp_path / name).read_bytes() for name in (STATISTICS, MEASURED)]
    loaded = RoutingStatistics.load(tmp_path)
    assert list(loaded.layers) == ["encoder.1", "decoder.1"]  # order of the forward pass, not of the alphabet
    assert loaded.provenance == statistics.provenance
    assert all(equal(loaded[name], statistics[name]) for name in loaded.layers)
    assert loaded.measured.keys() == measured.keys()
    for name, matrices in measured.items():
        assert loaded.measured[name].keys() == matrices.keys()
        assert all(torch.equal(loaded.measured[name][key], value) for key, value in matrices.items())
    loaded.save(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in (STATISTICS, MEASURED)] == first


def test_missing_or_damaged_statistics(tmp_path: Path):
    with pytest.raises(StatisticsError, match="no routing statistics in "):
        RoutingStatistics.load(tmp_path)
    RoutingStatistics({"a": random_layer(0)}).save(tmp_path)
    whole = (tmp_path / STATISTICS).read_bytes()
    (tmp_path / STATISTICS).write_bytes(whole[:100])
    with pytest.raises(StatisticsError, match="damaged"):
        RoutingStatistics.load(tmp_path)
    (tmp_path / STATISTICS).write_bytes(whole)
    (tmp_path / MEASURED).unlink()
    with pytest.raises(StatisticsError, match="no routing statistics in "):
        RoutingStatistics.load(tmp_path)
    RoutingStatistics({"a": random_layer(0)}).save(tmp_path)
    (tmp_path / PROVENANCE).write_text("{}")
    with pytest.raises(StatisticsError, match="damaged"):
        RoutingStatistics.load(tmp_path)


def swap(value: torch.Tensor) -> None:
    value[[0, 1]] = value[[1, 0]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("input_sums", lambda value: value[0].fill_(torch.nan), "input_sums holds NaN or infinity"),
        ("gates", lambda value: value[1].fill_(torch.inf), "gates holds NaN or infinity"),
        ("norms", lambda value: value[1].neg_(), "norms holds a negative number"),
        ("input_square_sums", lambda value: value.mul_(2), "input_square_sums do not add up"),
        ("input_square_sums", lambda value: value.div_(20), "input_abs_sums are larger than input_square_sums allow"),
        ("input_sums", lambda value: value.add_(1000), "input_sums are larger than input_abs_sums"),
        ("input_gram", lambda value: value[0].mul_(0.5), "input_gram is not symmetric"),
        ("logits_gram", lambda value: value.fill_diagonal_(0), "an entry that its diagonal does not allow"),
        ("output_gram", swap, "output_gram is not symmetric"),
        ("coselection", lambda value: value.mul_(0.5), "coselection"),
        ("coselection", lambda value: value.mul_(2), "coselection holds what is no count of its tokens"),
        ("coselection", lambda value: value.fill_diagonal_(20), "60 selections by 20 tokens"),
        ("tokens", lambda value: value.add_(1), "coselection does not add up: 40 selections by 21 tokens"),
        ("tokens", lambda value: value.zero_(), "coselection holds what is no count"),
    ],
)
def test_what_sums_over_tokens_cannot_be_is_refused(tmp_path: Path, name: str, change: Any, message: str):
    RoutingStatistics({"encoder.1": random_layer(1), "decoder.1": random_layer(0, *ENTRIES)}).save(tmp_path)
    sums = load_file(tmp_path / STATISTICS)
    change(sums[f"decoder.1/{name}"])
    save_file(sums, tmp_path / STATISTICS)
    with pytest.raises(StatisticsError, match=f"damaged .decoder.1: .*{message}"):
        RoutingStatistics.load(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    RoutingStatistics({"a": random_layer(0)}, measured={"a": {"correlation.lsa": torch.eye(2)}}).save(tmp_path)
    with pytest.raises(StatisticsError, match=r"a: correlation\.lsa has another shape"):
        RoutingStatistics.load(tmp_path)
    RoutingStatistics({"a": random_layer(0)}, {"theirs": [1]}).save(tmp_path)
    assert RoutingStatistics.load(tmp_path).provenance == {"theirs": [1]}
    (tmp_path / PROVENANCE).write_text(json.dumps({"tokens": {"a": 21}}))
    with pytest.raises(StatisticsError, match=r"a: 21 tokens in provenance\.json, 20 in statistics\.safetensors"):
        RoutingStatistics.load(tmp_path)


def test_statistics_of_different_models_do_not_add():
    with pytest.raises(ValueError, match="different models"):
        RoutingStatistics({}, {"model": {"router": "a"}}) + RoutingStatistics({}, {"model": {"router": "b"}})


@pytest.mark.parametrize("name", [STATISTICS, MEASURED, PROVENANCE])
def test_damaged_files_are_one_line(tmp_path: Path, name: str):
    measured = {"decoder.1": {"correlation.lsa": torch.eye(3)}}
    RoutingStatistics({"decoder.1": random_layer(0)}, {"seed": 3, "samples": 20}, measured).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for seed in range(COUNT):
        (tmp_path / name).write_bytes(mutated(whole, seed))
        with right_or_one_line():
            RoutingStatistics.load(tmp_path)
