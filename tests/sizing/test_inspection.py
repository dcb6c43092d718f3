"""What is told of checkpoints of which only config.json, or the index too, is there."""

import json
from pathlib import Path

import pytest

from mcsmoe.checkpoint.reader import INDEX, WEIGHTS
from mcsmoe.errors import CheckpointError
from mcsmoe.sizing import Sizes, inspect
from tests.causal import tiny_mixtral
from tests.exporting.models import KEPT, merge, small
from tests.families.models import small_model
from tests.models import tiny_compressed, tiny_switch

SAMPLE = (4, 16, 2)


def described(model, directory: Path, **changes) -> Path:
    """A directory with the config.json of `model` alone."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(model.config.to_dict() | changes))
    return directory


def test_a_directory_with_config_json_alone(tmp_path: Path):
    model = tiny_mixtral()
    found = inspect(described(model, tmp_path), *SAMPLE, name="a/b")
    assert (found.name, found.model_type, found.model_class) == ("a/b", "mixtral", "MixtralForCausalLM")
    assert (found.layers, found.experts, found.top_k, found.router_groups) == (2, 4, 2, 1)
    assert found.sparse_layers == {"decoder.0": 4, "decoder.1": 4}
    assert (found.stock_from, found.not_stock, found.merged) == (2, None, False)
    assert (found.dtype, found.quantised, found.bytes_on_disk) == ("float32", None, None)
    sizes = Sizes.of(model.config)
    assert (found.bytes, found.bytes_in_experts) == (sizes.total, sizes.in_experts)
    assert [(row.experts, row.format) for row in found.outcomes] == [(3, "stock"), (2, "stock"), (1, "mapped")]
    assert [row.bytes for row in found.outcomes] == [sizes.kept(row.experts, row.format) for row in found.outcomes]
    text = str(found)
    assert text.startswith("a/b: MixtralForCausalLM (mixtral)\nlayers ")
    assert "2, all sparse" in text
    assert "from 2 a layer on; any engine" in text
    assert "in float32, by the configuration" in text
    assert "memory (4 samples of 16 tokens, 2 at a time)" in text


def test_bytes_on_disk_from_a_single_file_or_from_the_index(tmp_path: Path):
    model = tiny_mixtral()
    model.save_pretrained(tmp_path)
    total = Sizes.of(model.config).total
    assert inspect(tmp_path, *SAMPLE).bytes_on_disk == total
    model.save_pretrained(tmp_path / "shards", max_shard_size="50kB")
    for shard in (tmp_path / "shards").glob("*.safetensors"):
        shard.unlink()
    found = inspect(tmp_path / "shards", *SAMPLE)
    assert found.bytes_on_disk == total
    assert found.name == str(tmp_path / "shards")
    (tmp_path / "shards" / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: no total_size; copy the file again"):
        inspect(tmp_path / "shards", *SAMPLE)


def test_only_some_layers_are_sparse(tmp_path: Path):
    found = inspect(described(tiny_switch(), tmp_path), *SAMPLE)
    assert (found.layers, len(found.sparse_layers)) == (8, 4)
    assert "8, 4 of them sparse" in str(found)


def test_shared_experts_and_router_groups(tmp_path: Path):
    model = small_model("deepseek_v3")
    found = inspect(described(model, tmp_path), *SAMPLE)
    shared = [value.nbytes for name, value in model.state_dict().items() if "shared_experts" in name]
    assert found.bytes_in_shared_experts == sum(shared) > 0
    assert (found.router_groups, found.stock_from) == (4, None)
    assert found.not_stock is not None
    assert "(n_group)" in found.not_stock
    assert {row.format for row in found.outcomes} == {"mapped"}
    assert "4 of neighbouring experts" in str(found)
    assert "shared experts" in str(found)
    assert "router groups" not in str(inspect(described(tiny_switch(), tmp_path), *SAMPLE))


def test_quantised_weights_are_counted_as_they_are_restored(tmp_path: Path):
    model = small_model("gpt_oss")
    directory = described(model, tmp_path, dtype=None, quantization_config={"quant_method": "mxfp4"})
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": 12345}, "weight_map": {}}))
    found = inspect(directory, *SAMPLE)
    assert (found.quantised, found.dtype, found.bytes_on_disk) == ("mxfp4", "bfloat16", 12345)
    assert found.bytes == Sizes.of(model.config.to_dict() | {"dtype": "bfloat16"}).total
    assert "12.3 kB on disk, quantised (mxfp4); " in str(found)
    plain = inspect(described(model, tmp_path / "plain", dtype="bfloat16"), *SAMPLE)
    extra = [row.disk - other.disk for row, other in zip(found.outcomes, plain.outcomes, strict=True)]
    assert extra == [found.bytes] * len(extra)


def test_a_merged_model_is_told_as_such(tmp_path: Path):
    merge(small("qwen3_moe"), tmp_path)
    found = inspect(tmp_path / "merged", *SAMPLE)
    assert (found.merged, found.experts, found.sparse_layers) == (True, 8, {"decoder.1": KEPT})
    assert (found.outcomes, found.stock_from, found.not_stock) == ((), None, None)
    assert "already: 4 of 8 experts a layer are left" in str(found)
    assert "stock result" not in str(found)
    compressed = inspect(described(tiny_compressed(), tmp_path / "compressed"), *SAMPLE)
    assert set(compressed.sparse_layers.values()) == {1, 2, 3, 8}
    assert "already: 1–8 of 8" in str(compressed)


def test_the_language_model_of_one_that_reads_more_than_text(tmp_path: Path):
    inside = small_model("llama4_text").config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": inside}))
    assert inspect(tmp_path, *SAMPLE).model_type == "llama4_text"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "llama"}, r"^m: a dense model \(llama\): it has no experts to merge$"),
        ({"model_type": "t5"}, r"^m: a dense model \(t5\)"),
        ({"model_type": "unheard_of", "num_experts": 4}, "^m: model type 'unheard_of' is not supported; supported: "),
        ({"model_type": "jetmoe"}, "^m: model type 'jetmoe' is not supported: its attention"),
        ({"model_type": "mixtral", "hidden_size": "wide"}, r"^m: config\.json describes no model that can be built: "),
        ({"hidden_size": 4}, r"^m: config\.json names no model_type; copy the file again$"),
        ([], r"config\.json: not a JSON object"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(config, message, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        inspect(tmp_path, *SAMPLE, name="m")


def test_no_config(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no config\.json; is it a checkpoint directory\?"):
        inspect(tmp_path, *SAMPLE)


def test_weights_are_not_read(tmp_path: Path):
    tiny_mixtral().save_pretrained(tmp_path)
    with (tmp_path / WEIGHTS).open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\xff")  # NaN
    assert inspect(tmp_path, *SAMPLE).bytes_on_disk is not None


def test_json_has_every_field(tmp_path: Path):
    found = inspect(described(tiny_mixtral(), tmp_path), *SAMPLE)
    values = json.loads(json.dumps(found.to_json()))
    assert set(values) == set(vars(found))
    assert set(values["outcomes"][0]) == {"experts", "format", "bytes", "share", "disk", "whole", "streamed"}
    assert values["sample"] == {"samples": 4, "length": 16, "batch_size": 2}
