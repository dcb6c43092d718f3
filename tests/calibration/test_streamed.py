"""A model of which one block at a time is in memory: the bits of one that is whole, and no more weights than that."""

import gc
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.calibration.watch import count, watch, watching
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.lockstep import logits_of, run_forwards
from mcsmoe.checkpoint.streamed import Footprint, blocks_of, load_streamed
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of
from mcsmoe.tasks.batches import model_inputs
from tests import causal
from tests.calibration.samples import batches, samples
from tests.checkpoint.damage import change
from tests.families.models import small_model
from tests.families.planted import merge
from tests.families.planted import save as saved
from tests.models import VOCABULARY, tiny_merged, tiny_mixed, tiny_switch

SWITCH = "switch_transformers"
# One of each kind: encoder-decoder, plain, latent attention, fused on disk (stack, flat), state space, linear
# attention, ours.
SWITCHES = {"merged": tiny_merged, "compressed": tiny_mixed}
MODELS = [SWITCH, "mixtral", "deepseek_v3", "gpt_oss", "dbrx", "jamba", "minimax", "fsgpt_moe"]


def save(model_type: str, directory: Path) -> Path:
    model = tiny_switch() if model_type == SWITCH else small_model(model_type)
    model.save_pretrained(directory)
    return directory


def ragged(model: Any) -> list[dict[str, Tensor]]:
    """Three batches of different lengths, the last one of one row."""
    if model.config.is_encoder_decoder:
        return batches(samples(), 3)
    return causal.batches(3)


def measure(model: Any, **options: Any) -> RoutingStatistics:
    family = family_of(model.config)
    return collect(model, family, family.layers(model.config), ragged(model), **options)


def in_memory(model: Any) -> list[str]:
    """Blocks of which anything is in memory."""
    blocks = blocks_of(model)
    assert blocks is not None
    return [name for name in blocks.names if any(not p.is_meta for p in model.get_submodule(name).parameters())]


@pytest.mark.parametrize("model_type", MODELS)
def test_statistics_have_the_bits_of_a_model_that_is_whole(model_type: str, tmp_path: Path):
    directory = save(model_type, tmp_path)
    model, also = load_streamed(directory), ["norms", "outputs"]
    found, expected = measure(model, also=also), measure(load_model(directory), also=also)
    assert list(found.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        for key, value in layer.tensors().items():
            assert torch.equal(found[name].tensors()[key], value), f"{name} {key}"
    assert in_memory(model) == []


@torch.no_grad()
def logits(model: Any) -> list[Tensor]:
    """Logits of each of the three batches."""
    found: list[Tensor] = []

    def forward(inputs: dict[str, Tensor]) -> None:
        found.append(model(**inputs).logits)

    inputs = [model_inputs(batch, causal=not model.config.is_encoder_decoder) for batch in ragged(model)]
    run_forwards(model, [partial(forward, each) for each in inputs], "batches", show=False)
    return found


@pytest.mark.parametrize("model_type", ["merged", "compressed", "mixtral", "gpt_oss", "dbrx", "llama4_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_models_have_the_bits_of_whole_ones(model_type: str, dtype: torch.dtype, tmp_path: Path):
    if model_type in SWITCHES:
        SWITCHES[model_type]().to(dtype).save_pretrained(tmp_path / "merged")
    else:
        merge(saved(small_model(model_type).to(dtype), tmp_path / "stock"), tmp_path / "merged")
    model = load_streamed(tmp_path / "merged")
    assert all(map(torch.equal, logits(model), logits(load_model(tmp_path / "merged"))))
    assert in_memory(model) == []
    whole = Footprint.of(model.config)
    assert whole.resident + whole.block < whole.whole


@pytest.mark.parametrize("model_type", [SWITCH, "mixtral"])
def test_another_dtype_has_the_bits_of_a_whole_model(model_type: str, tmp_path: Path):
    directory = save(model_type, tmp_path)
    found, expected = (load(directory, dtype=torch.float64) for load in (load_streamed, load_model))
    assert all(map(torch.equal, logits(found), logits(expected)))
    assert logits(found)[0].dtype == torch.float64


@pytest.mark.parametrize("model_type", [SWITCH, "mixtral"])
def test_one_block_is_in_memory_and_each_is_loaded_once(model_type: str, tmp_path: Path, monkeypatch):
    model = load_streamed(save(model_type, tmp_path))
    family, blocks = family_of(model.config), blocks_of(model)
    assert blocks is not None
    loaded: list[str] = []
    load = blocks.load

    def counted(block: str) -> None:
        loaded.append(block)
        load(block)

    monkeypatch.setattr(blocks, "load", counted)
    seen: list[str] = []
    layers = family.layers(model.config)

    def see(layer: Any, x: Tensor, routing: Any) -> None:
        assert in_memory(model) == [layer.path.split(".layer.")[0].removesuffix(".mlp")]
        seen.append(layer.name)

    for layer in watching(model, family, layers, ragged(model), see):
        seen.append(layer.name + " done")
    assert seen == [name for layer in layers for name in [layer.name] * 3 + [layer.name + " done"]]
    assert loaded == blocks.names


def test_no_pass_goes_further_than_the_last_layer_that_is_watched(tmp_path: Path):
    directory = save("mixtral", tmp_path)
    later: list[str] = []
    for model in (load_model(directory), load_streamed(directory)):
        family = family_of(model.config)
        for name in ("model.layers.1", "lm_head"):
            model.get_submodule(name).register_forward_pre_hook(lambda module, inputs, name=name: later.append(name))
        count(model, family, family.layers(model.config)[:1], ragged(model))
    assert later == []


def in_a_block(model: Any) -> None:
    def fail(layer: Any, x: Tensor, routing: Any) -> None:
        raise RuntimeError("in a block")

    family = family_of(model.config)
    watch(model, family, family.layers(model.config)[1:], ragged(model), fail)


def around_blocks(model: Any) -> None:
    parts = ragged(model)
    parts[1]["input_ids"] += VOCABULARY
    family = family_of(model.config)
    count(model, family, family.layers(model.config), parts)


def while_loading(model: Any) -> None:
    name = "encoder.block.3.layer.1.mlp.experts.expert_2.wi.weight"
    change(Path(model.config.name_or_path), lambda tensors: tensors[name].view(-1)[0].fill_(float("nan")))
    measure(model)


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        (in_a_block, RuntimeError, "in a block"),
        (around_blocks, IndexError, "out of range"),
        (while_loading, CheckpointError, r"expert_2\.wi\.weight holds NaN"),
    ],
)
def test_an_error_surfaces_and_nothing_is_left(fail: Any, error: Any, message: str, tmp_path: Path):
    model = load_streamed(save(SWITCH, tmp_path))
    model.config.name_or_path = str(tmp_path)
    before = threading.active_count()
    with pytest.raises(error, match=message):
        fail(model)
    assert threading.active_count() == before
    assert in_memory(model) == []
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"no tensor model\.norm\.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "the first is extra"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"has shape \[3\], not \[32\]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_any_pass(edit: Any, message: str, tmp_path: Path):
    change(save("mixtral", tmp_path), edit)
    with pytest.raises(CheckpointError, match=message):
        load_streamed(tmp_path)


def test_a_tensor_that_a_merged_model_does_not_have_is_refused(tmp_path: Path):
    tiny_merged().save_pretrained(tmp_path)
    change(tmp_path, lambda tensors: tensors.update(extra=torch.ones(1)))
    with pytest.raises(CheckpointError, match="1 unexpected tensors, the first is extra"):
        load_streamed(tmp_path)


def test_the_footprint_is_that_of_the_weights(tmp_path: Path):
    model = small_model("mixtral")
    found = Footprint.of(model.config)
    assert found.whole == sum(value.nbytes for value in model.state_dict().values())
    assert found.block == sum(value.nbytes for value in model.model.layers[0].state_dict().values())
    assert found.whole == found.resident + 2 * found.block
    switch = tiny_switch()  # its embedding is in four places
    assert Footprint.of(switch.config).whole == sum(value.nbytes for value in switch.parameters())


def test_a_forward_pass_holds_all_blocks_in_the_same_memory(tmp_path: Path):
    directory = save("mixtral", tmp_path)
    model, whole = load_streamed(directory), load_model(directory)
    blocks, addresses = blocks_of(model), set[int]()
    assert blocks is not None

    def look(model: Any, block: str) -> None:
        addresses.add(model.get_submodule(block).mlp.experts.down_proj.data_ptr())

    blocks.look = look
    for batch in causal.batches(3):
        assert torch.equal(logits_of(model, batch), logits_of(whole, batch))
        assert len(addresses) == 1 < len(blocks.names)
        addresses.clear()


def test_the_memory_of_a_streamed_model_is_free_at_once(tmp_path: Path):
    model = load_streamed(save("mixtral", tmp_path))
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
