"""The model under study: what is known of it at once, and its weights for a while."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.streamed import blocks_of
from mcsmoe.errors import CheckpointError
from mcsmoe.families import sparse_layers
from mcsmoe.model import Model
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks import batches
from mcsmoe.tasks.batches import IGNORED
from mcsmoe.tasks.task import Encoded
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.causal import tiny_mixtral
from tests.checkpoint.damage import change_config
from tests.models import batch, tiny_merged, tiny_switch

ROWS = [Encoded([5, 6, 1], [7, 1]), Encoded([8, 1], [9, 9, 1]), Encoded([8], [9])]
MODELS = {"switch": tiny_switch, "mixtral": tiny_mixtral}


@pytest.fixture(params=MODELS)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    MODELS[request.param]().save_pretrained(tmp_path)
    train_tokenizer(["copy 1 2"], TokenizerSection(kind="word", vocab_size=20)).save_pretrained(tmp_path)
    return tmp_path


def test_it_knows_its_family_and_its_layers(directory: Path):
    model = Model(directory)
    assert model.family.model_type == model.config.model_type
    assert model.layers == sparse_layers(model.checkpoint.config) != []
    assert model.memory_limit is None


def test_its_fingerprint_is_that_of_its_content(directory: Path, tmp_path_factory: pytest.TempPathFactory):
    known = Model(directory).fingerprint
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("copy") / "model")
    assert Model(copy).fingerprint == known

    def changed() -> set[str]:
        return {part for part, found in Model(copy).fingerprint.items() if found != known[part]}

    model = load_model(copy)
    model.save_pretrained(copy, max_shard_size="20KB")  # other files with the same tensors
    (copy / "model.safetensors").unlink()
    assert changed() == set()
    with torch.no_grad():
        next(model.get_submodule(Model(copy).layers[-1].router_path).parameters()).add_(1e-3)
    (copy / "model.safetensors.index.json").unlink()
    model.save_pretrained(copy)
    assert changed() == {"router"}
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    assert changed() == {"router", "tokenizer"}
    change_config(copy, lambda values: values.update(initializer_factor=0.5))
    assert changed() == {"router", "tokenizer", "configuration"}


def test_a_merged_model_is_a_model_too(tmp_path: Path):
    tiny_merged().save_pretrained(tmp_path)
    model = Model(tmp_path)
    assert [layer.name for layer in model.layers] == ["encoder.1", "encoder.3", "decoder.1", "decoder.3"]
    with model.loaded() as module, torch.no_grad():
        assert torch.equal(module(**batch()).logits, tiny_merged()(**batch()).logits)


def test_batches_are_padded_for_the_family(directory: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "PADDING", 0.25)
    model = Model(directory)
    first, second = model.batches(ROWS[::-1], 2)
    assert (len(first["labels"]), len(second["labels"])) == (2, 1)
    pad = model.tokenizer.pad_token_id
    if model.family.causal:
        assert first["input_ids"].tolist() == [[8, 1, 9, 9], [5, 6, 1, 7]]
        assert first["labels"].tolist() == [[IGNORED, 9, 9, 1], [IGNORED, IGNORED, 7, 1]]
    else:
        assert first["input_ids"].tolist() == [[5, 6, 1], [8, 1, pad]]
        assert first["labels"].tolist() == [[7, 1, IGNORED], [9, 9, 1]]


def test_whole_it_is_the_model_on_the_disk(directory: Path):
    expected = load_model(directory).state_dict()
    with Model(directory).loaded() as module:
        assert blocks_of(module) is None
        assert not module.training
        assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_streamed_its_blocks_have_no_memory(directory: Path):
    with Model(directory).loaded(streamed=True) as module:
        blocks = blocks_of(module)
        assert blocks is not None
        for name, value in module.named_parameters():
            assert value.is_meta == any(name.startswith(f"{block}.") for block in blocks.names), name


@pytest.mark.parametrize("streamed", [False, True])
def test_its_weights_go_at_the_end_whoever_holds_it(directory: Path, streamed: bool):
    held = []

    def fail() -> None:
        with Model(directory).loaded(streamed=streamed) as module:
            held.append(module)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert all(value.is_meta for value in held[0].state_dict(keep_vars=True).values())


def test_what_is_no_model_of_ours_is_refused(directory: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        Model(tmp_path / "nowhere")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match="'bert' is not supported"):
        Model(directory)


def test_only_who_needs_a_tokenizer_misses_it(tmp_path: Path):
    tiny_switch().save_pretrained(tmp_path)
    model = Model(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        model.batches(ROWS, 2)
