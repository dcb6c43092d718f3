"""Bytes foretold from a configuration are those of what is really written."""

import math
from pathlib import Path

import pytest

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import ConflictError, ParameterError
from mcsmoe.families import sparse_layers
from mcsmoe.sizing.sizes import Sizes, target_bytes, why_not_stock
from tests.causal import tiny_mixtral
from tests.exporting.models import EXPERTS, KEPT, SWITCH, export, in_pairs, merge, small
from tests.exporting.test_check import untouched
from tests.families.models import small_model
from tests.models import tiny_compressed, tiny_merged

FAMILIES = [SWITCH, "mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "dbrx", "llama4_text", "qwen2_moe"]
EXPERT = 3 * 32 * 48 * 4
"""Bytes of an expert of `tiny_mixtral`."""


def tensor_bytes(directory: Path) -> int:
    checkpoint = Checkpoint(directory)
    names = checkpoint.names()
    return sum(math.prod(checkpoint.shape(name)) * checkpoint.dtype(name).itemsize for name in names)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_of_source_merged_and_stock_checkpoints(model_type: str, dtype: str, tmp_path: Path):
    model = small(model_type)
    model = model.bfloat16() if dtype == "bfloat16" else model
    model.config.dtype = dtype
    merged = merge(model, tmp_path)
    sizes = Sizes.of(merged.mapped.source.config)
    assert sizes.total == tensor_bytes(tmp_path / "source")
    assert sizes.kept(KEPT, "mapped") == tensor_bytes(tmp_path / "merged")
    found = Sizes.of(merged.mapped.checkpoint.config)
    assert (found.total, found.fewest, found.merged) == (tensor_bytes(tmp_path / "merged"), KEPT, True)
    assert found.in_experts * EXPERTS == sizes.in_experts * KEPT
    export(merged, tmp_path / "stock")
    assert sizes.kept(KEPT, "stock") == tensor_bytes(tmp_path / "stock")


def test_layers_that_keep_different_numbers(tmp_path: Path):
    merge(small(SWITCH), tmp_path, lambda layer: untouched(layer) if layer.name == "decoder.3" else in_pairs(layer))
    sizes = Sizes.of(Checkpoint(tmp_path / "source").config)
    kept = {layer.name: KEPT for layer in sizes.layers if layer.name != "decoder.3"}
    assert sizes.kept(kept, "mapped") == tensor_bytes(tmp_path / "merged")
    with pytest.raises(ParameterError, match=r"experts = \{.*'decoder.3': 8\}: a stock checkpoint has one number"):
        sizes.kept(kept, "stock")
    assert sizes.kept(dict.fromkeys(kept | {"decoder.3": 8}, 8), "stock") == sizes.total


def test_what_a_layer_holds():
    sizes = Sizes.of(tiny_mixtral().config)
    assert list(sizes.by_layer) == ["decoder.0", "decoder.1"]
    layer = sizes.by_layer["decoder.1"]
    assert (layer.count, layer.expert, layer.rows) == (4, EXPERT, 32 * 4)
    assert sizes.in_experts == 8 * EXPERT
    assert sizes.kept(3, "mapped") == sizes.total - 2 * EXPERT + 2 * 4 * 8
    assert sizes.kept(3, "stock") == sizes.total - 2 * (EXPERT + 32 * 4)


def test_a_merged_model_has_no_other_result():
    for model in (tiny_merged(), tiny_compressed()):
        sizes = Sizes.of(model.config)
        assert sizes.total == sum(value.nbytes for value in model.state_dict().values()) - 3 * tied(model)
        with pytest.raises(ConflictError, match="merged already"):
            sizes.kept(1, "mapped")


def tied(model) -> int:
    """Bytes of the embedding of a Switch, which encoder, decoder and head share."""
    return model.shared.weight.nbytes


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (0, r"experts = 0: decoder\.0 has 4 and keeps at least one"),
        (5, r"experts = 5: decoder\.0 has 4"),
        ({"decoder.7": 2}, r"experts = 'decoder\.7': sparse layers are decoder\.0, decoder\.1"),
    ],
)
def test_an_impossible_number(experts, message):
    with pytest.raises(ParameterError, match=message):
        Sizes.of(tiny_mixtral().config).kept(experts, "mapped")


@pytest.mark.parametrize("form", ["mapped", "stock"])
def test_the_most_experts_for_a_size(form):
    sizes = Sizes.of(tiny_mixtral().config)
    exact = sizes.kept(3, form)
    assert sizes.largest(exact, form) == 3
    assert sizes.largest(exact - 1, form) == 2
    assert sizes.largest(f"{exact}B", form) == 3
    assert sizes.largest(0.99, form) == 3
    assert sizes.largest(10 * sizes.total, form) == 4


def test_a_size_that_cannot_be_reached():
    sizes = Sizes.of(tiny_mixtral().config)  # a token selects two experts
    assert sizes.largest(sizes.kept(1, "mapped"), "mapped") == 1
    with pytest.raises(ParameterError, match=r"size = '1%': 1 experts a layer, .* of a mapped model, leave [\d,]+ b"):
        sizes.largest("1%", "mapped")
    with pytest.raises(ParameterError, match="2 experts a layer, the fewest of a stock model"):
        sizes.largest(sizes.kept(1, "stock"), "stock")
    with pytest.raises(ParameterError, match=r"format = 'stock': the router of .* 4 groups"):
        Sizes.of(small_model("deepseek_v3").config).largest("50%", "stock")


def test_sizes_as_people_write_them():
    assert target_bytes("50%", 1001) == target_bytes(0.5, 1001) == 500
    assert target_bytes(" 12.5 % ", 1000) == 125
    assert target_bytes("29%", 100) == target_bytes(0.29, 100) == 29  # in floats 0.29 · 100 is less than 29
    assert target_bytes("1.5GB", 10) == 1_500_000_000
    assert target_bytes(7, 10) == 7


@pytest.mark.parametrize("size", ["", "half", "0%", "101%", "%", 1.5, 0.0, -3, "0GB", float("nan"), True])
def test_a_size_that_is_none(size):
    with pytest.raises(ParameterError, match=r"size = .*: a share of the model such as 50%, or bytes such as 24GB"):
        target_bytes(size, 100)


def test_why_not_stock():
    layers = sparse_layers(tiny_mixtral().config)
    assert why_not_stock(layers, 2) is None
    assert why_not_stock(layers, 1) == (
        "decoder.0 keeps 1 experts, but its router selects 2: merge to at least as many groups"
    )
    limited = why_not_stock(sparse_layers(small_model("deepseek_v3").config), 8)
    assert limited is not None
    assert "chooses among 4 groups (n_group)" in limited
    # One group is no limit.
    assert why_not_stock(sparse_layers(small_model("glm4_moe").config), 2) is None
