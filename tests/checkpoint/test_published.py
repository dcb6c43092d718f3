"""Tensors that the model does not use, a draft head, and experts fused on disk: from the source to every result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.older import DRAFT
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.checkpoint.verify import check_inventory, verify_checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.exporting.routers import ROWS
from mcsmoe.exporting.stock import check_stock, write_stock
from mcsmoe.exporting.write import unseen_routers
from mcsmoe.families import family_of
from mcsmoe.training.untrained import restore
from tests.checkpoint.damage import change
from tests.exporting import models
from tests.families.models import batch, small_model
from tests.families.planted import logits, save

DRAFTS = {
    "deepseek_v3": "model.layers.2.enorm.weight",  # of a model of two layers
    "glm4_moe": "model.layers.46.enorm.weight",
    "qwen3_next": "mtp.pre_fc_norm_hidden.weight",
    "ernie4_5_moe": "model.mtp_hidden_norm.0.weight",
    "mimo_v2_flash": "model.mtp.layers.0.enorm.weight",
    "mixtral": "mtp.0.norm.weight",
}
UNUSED = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.embed_positions._float_tensor"]
KINDS = ["dbrx", "gpt_oss", "granitemoe", "lfm2_moe", "llama4_text", "mixtral", "nemotron_h", "qwen3_moe"]
"""A family for each way in which experts lie on disk and in memory."""
HALF_NAN = torch.tensor([1.0, float("nan")])


def with_more(model: Any, directory: Path, names: list[str], value: torch.Tensor) -> Path:
    model.save_pretrained(directory)
    change(directory, lambda tensors: tensors.update({name: value.clone() for name in names}))
    return directory


@pytest.mark.parametrize("model_type", DRAFTS)
def test_what_the_model_does_not_use_is_left_out(model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, draft = small_model(model_type), DRAFTS[model_type]
    source = with_more(model, tmp_path / "source", [draft, *UNUSED], HALF_NAN)
    before = Checkpoint(source).names()
    restore(source, tmp_path / "output")
    assert "3 tensors that the model does not use are left out" in capsys.readouterr().out
    assert set(before) - set(Checkpoint(tmp_path / "output").names()) == {draft, *UNUSED}
    for loaded in (load_model(source), load_model(tmp_path / "output")):
        assert torch.equal(logits(loaded), logits(model))
    load_streamed(source)


@pytest.mark.parametrize("name", ["model.layers.1.enorm.weight", "model.layers.9.enorm.weight", "extra"])
def test_any_other_tensor_is_an_error(name: str, tmp_path: Path):
    source = with_more(small_model("deepseek_v3"), tmp_path, [name], torch.ones(2))
    for read in (load_model, load_streamed, lambda path: Published(Checkpoint(path))):
        with pytest.raises(CheckpointError, match=f"1 unexpected tensors, the first is {name}"):
            read(source)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("mimo_v2_flash", {}), ("mixtral", {}), ("deepseek_v3", {"n_group": 1, "topk_group": 1})],
)
def test_a_draft_head_is_carried_through_every_step(model_type: str, changes: dict[str, int], tmp_path: Path):
    draft, value = DRAFTS[model_type], torch.arange(3.0)
    source = with_more(small_model(model_type, **changes), tmp_path / "first", [draft], value)
    restore(source, tmp_path / "kept", keep_mtp=True)
    trained = load_model(tmp_path / "kept")
    kept = Published(Checkpoint(tmp_path / "kept"))
    written = save_model(trained, NoTokenizer(), made(tmp_path / "trained"), beside=kept)
    verify_checkpoint(tmp_path / "trained", written, batch(), logits(trained))
    merged = models.merge(load_model(tmp_path / "trained"), tmp_path / "made", source=tmp_path / "trained")
    verify_checkpoint(tmp_path / "made/merged", {}, batch(), None)
    check_stock(merged.mapped)
    write_stock(merged.mapped, unseen_routers(merged.mapped, ROWS["dominant"]), made(tmp_path / "stock"))
    check_inventory(Checkpoint(tmp_path / "stock"), {})
    for name in ("kept", "trained", "made/merged", "stock"):
        checkpoint = Checkpoint(tmp_path / name)
        assert checkpoint.tensor(draft).equal(value), name
        assert checkpoint.config.get(DRAFT) == Checkpoint(source).config.get(DRAFT)
    restore(source, tmp_path / "without")
    assert not Checkpoint(tmp_path / "without").config.get(DRAFT)


def test_experts_of_a_draft_head_do_not_fit_into_a_stock_config(tmp_path: Path):
    draft = "mtp.layers.0.mlp.experts.0.gate_proj.weight"
    source = with_more(small_model("qwen3_next"), tmp_path / "source", [draft], torch.ones(2, 2))
    merged = models.merge(load_model(source), tmp_path / "made", source=source)
    with pytest.raises(CheckpointError, match=r"multi-token prediction have experts.*without them"):
        check_stock(merged.mapped)


@pytest.mark.parametrize("model_type", KINDS)
def test_names_in_memory_are_read_as_published(model_type: str, tmp_path: Path):
    model = small_model(model_type)
    published = save(model, tmp_path / "published").checkpoint
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    fused = Published(Checkpoint(tmp_path / "fused"))
    assert fused.names() == published.names()
    for name in published.names():
        assert (fused.shape(name), fused.dtype(name)) == (published.shape(name), published.dtype(name))
        assert fused.tensor(name).equal(published.tensor(name)), name
    layer = family_of(model.config).layers(model.config)[0]
    for name in layer.layout:
        assert layer.read(fused, 3, name).equal(layer.read(published, 3, name))


def test_a_fused_checkpoint_is_trained_and_saved_as_published(tmp_path: Path):
    model = small_model("qwen3_moe")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert "model.layers.1.mlp.experts.gate_up_proj" in load_file(tmp_path / "fused" / WEIGHTS)
    loaded = load_model(tmp_path / "fused")
    written = save_model(loaded, NoTokenizer(), made(tmp_path / "trained"))
    verify_checkpoint(tmp_path / "trained", written, batch(), logits(model))
    restore(tmp_path / "fused", tmp_path / "taken")
    assert Checkpoint(tmp_path / "taken").names() == Checkpoint(tmp_path / "trained").names()
    assert torch.equal(logits(load_model(tmp_path / "taken")), logits(model))


class NoTokenizer:
    def save_pretrained(self, directory: Path) -> None:
        pass


def made(directory: Path) -> Path:
    directory.mkdir()
    return directory
