"""Damage of every kind to every kind of tensor and setting of a merged model is caught, in one line.

Of what was written nothing is known here but the logits; `test_unreached` has the rest.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.checkpoint.reader import WEIGHTS
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.verify import verify_checkpoint
from mcsmoe.errors import CheckpointError
from tests.checkpoint.damage import change, change_config
from tests.models import batch, logits, tiny_merged

LAYER = "encoder.block.3.layer.1.mlp"  # three experts, all of which tokens of the batch reach
TENSORS = [
    "shared.weight",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    "decoder.block.2.layer.1.layer_norm.weight",
    "decoder.block.2.layer.2.mlp.wo.weight",
    f"{LAYER}.router.classifier.weight",
    f"{LAYER}.expert_map",
    f"{LAYER}.experts.wi.weight",
    f"{LAYER}.experts.wo.weight",
]
FLOATS = [name for name in TENSORS if not name.endswith("expert_map")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """A merged checkpoint that passes."""
    directory = tmp_path_factory.mktemp("whole")
    save_model(tiny_merged(), tokenizer, directory)
    verify_checkpoint(directory, {}, batch(), logits(tiny_merged()))
    return directory


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def refused(directory):
    """The one line with which the checkpoint is refused."""
    with pytest.raises(CheckpointError) as error:
        verify_checkpoint(directory, {}, batch(), logits(tiny_merged()))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", TENSORS)
class TestTensor:
    def test_dropped(self, copy, name):
        change(copy, lambda tensors: tensors.pop(name))
        assert refused(copy).endswith(f"1 missing tensors, the first is {name}")

    def test_renamed(self, copy, name):
        change(copy, lambda tensors: tensors.update({f"model.{name}": tensors.pop(name)}))
        assert refused(copy).endswith(f"1 missing tensors, the first is {name}")

    def test_written_twice_under_another_name(self, copy, name):
        change(copy, lambda tensors: tensors.update({f"{name}.old": tensors[name].clone()}))
        assert refused(copy).endswith(f"1 unexpected tensors, the first is {name}.old")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
    def test_of_another_dtype(self, copy, name, dtype):
        change(copy, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
        assert f"{name} is {dtype}, not torch." in refused(copy)

    def test_cut(self, copy, name):
        change(copy, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
        assert f"{name} has shape [" in refused(copy)

    def test_zeroed(self, copy, name):
        change(copy, lambda tensors: tensors[name].zero_())
        assert "reloaded: logits differ" in refused(copy)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite(copy, name, value):
    change(copy, lambda tensors: tensors[name].view(-1)[-1].fill_(value))
    assert f"{name} holds NaN or infinity" in refused(copy)


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
def test_two_experts_swapped(copy, pair):
    def swap(tensors):
        for key in ("wi", "wo"):
            weight = tensors[f"{LAYER}.experts.{key}.weight"]
            weight[list(pair)] = weight[list(pair[::-1])]

    change(copy, swap)
    assert "reloaded: logits differ" in refused(copy)


@pytest.mark.parametrize("expert", range(3))
def test_one_expert_zeroed(copy, expert):
    change(copy, lambda tensors: tensors[f"{LAYER}.experts.wo.weight"][expert].zero_())
    assert "reloaded: logits differ" in refused(copy)


def test_two_slots_of_the_map_swapped(copy):
    change(copy, lambda tensors: tensors[f"{LAYER}.expert_map"][:2].copy_(torch.tensor([1, 0])))
    assert "reloaded: logits differ" in refused(copy)


class TestFile:
    @pytest.mark.parametrize("kept", [0, 5, 1000, -1])
    def test_truncated(self, copy, kept):
        content = (copy / WEIGHTS).read_bytes()
        (copy / WEIGHTS).write_bytes(content[:kept])
        assert "damaged header" in (found := refused(copy)) or "its header declares" in found

    @pytest.fixture
    def shards(self, copy):
        (copy / WEIGHTS).unlink()
        tiny_merged().save_pretrained(copy, max_shard_size="100KB")
        return sorted(copy.glob("model-*.safetensors"))

    def test_in_shards_passes(self, copy, shards):
        assert len(shards) > 3
        verify_checkpoint(copy, {}, batch(), logits(tiny_merged()))

    def test_shard_truncated(self, copy, shards):
        shards[1].write_bytes(shards[1].read_bytes()[:-4])
        assert "its header declares" in refused(copy)

    def test_shard_missing(self, copy, shards):
        shards[1].unlink()
        assert f"shard {shards[1].name} is missing" in refused(copy)

    def test_shard_in_place_of_another(self, copy, shards):
        shutil.copyfile(shards[0], shards[1])
        assert "is in two files" in refused(copy)

    @pytest.mark.parametrize("name", ["modeling_mcsmoe_switch.py", "linears_mcsmoe.py"])
    def test_of_remote_code_lost(self, copy, name):
        (copy / name).unlink()
        assert "does not load in a fresh process" in refused(copy)

    def test_with_another_seed(self, copy):
        """Everything is in place, but it is another model."""
        torch.manual_seed(7)
        shapes = load_file(copy / WEIGHTS)
        other = {name: torch.rand_like(value) for name, value in shapes.items() if value.is_floating_point()}
        change(copy, lambda tensors: tensors.update(other))
        assert "reloaded: logits differ" in refused(copy)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda values: values.update(num_experts=7), "expert_map has shape [8], not [7]"),
        (lambda values: values.update(num_experts=9), "expert_map has shape [8], not [9]"),
        (lambda values: values["moe_layers"]["encoder.3"].update(experts=2), "has shape [3, 48, 32], not [2, 48, 32]"),
        (lambda values: values["moe_layers"]["encoder.3"].update(experts=4), "has shape [3, 48, 32], not [4, 48, 32]"),
        (lambda values: values["moe_layers"]["encoder.3"].update(experts=-1), "describes no model that can be built"),
        (lambda values: values["moe_layers"]["encoder.3"].update(experts="3"), "describes no model that can be built"),
        (lambda values: values["moe_layers"]["encoder.3"].clear(), "describes no model that can be built"),
        (lambda values: values["moe_layers"].update({"encoder.9": {"experts": 3}}), "no model that can be built"),
        (lambda values: values["moe_layers"].update({"nosuch.3": {"experts": 3}}), "no model that can be built"),
        (lambda values: values["moe_layers"].pop("encoder.3"), "2 missing tensors"),
        (lambda values: values["moe_layers"].update({"encoder.2": {"experts": 3}}), "4 missing tensors"),
        (lambda values: values.update(model_type="switch_transformers"), "missing tensors"),
        (lambda values: values.update(model_type="nosuch"), "'nosuch' is not supported"),
        (lambda values: values.update(expert_capacity=1), "reloaded: logits differ"),
        (lambda values: values.update(dense_act_fn="gelu"), "reloaded: logits differ"),
        (lambda values: values.pop("auto_map"), "does not load in a fresh process"),
    ],
)
def test_a_config_that_tells_something_else(copy, edit, message):
    change_config(copy, edit)
    assert message in refused(copy)
