import json
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.reader import WEIGHTS
from mcsmoe.checkpoint.source import fetch, is_hub_id
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.errors import CheckpointError
from tests.causal import tiny_mixtral
from tests.checkpoint.damage import change, change_config
from tests.models import logits, tiny_switch
from tests.shared import GOLDEN, needs_golden


def test_loads_what_was_saved(model, saved):
    found = load_model(saved)
    assert type(found) is type(model)
    assert not found.training
    assert torch.equal(logits(found), logits(model))
    assert load_tokenizer(saved)("a </s>")["input_ids"] == [3, 1]


def test_dtype_is_kept_or_given(model, saved):
    assert load_model(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(saved)
    assert load_model(saved).dtype == torch.bfloat16


def test_old_bin_checkpoint(tmp_path):
    model = tiny_switch()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("content", [b"nothing of the kind", bytes(4096)])
def test_damaged_bin_checkpoint(content, tmp_path):
    tiny_switch().config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be loaded") as error:
        load_model(tmp_path)
    assert "weights_only" not in str(error.value), "no advice to run what the file holds"


def test_a_bin_that_unpacks_to_more_than_its_size(tmp_path):
    tiny_switch().config.save_pretrained(tmp_path)
    torch.save({"shared.weight": torch.zeros(10**6)}, tmp_path / "stored")
    with ZipFile(tmp_path / "stored") as stored, ZipFile(tmp_path / "pytorch_model.bin", "w", ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(CheckpointError, match="unpacks to more than its size"):
        load_model(tmp_path)


def test_pickled_code_is_not_run(tmp_path):
    tiny_switch().config.save_pretrained(tmp_path)
    torch.save({"shared.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"cannot be loaded: it holds something else than tensors") as error:
        load_model(tmp_path)
    assert "weights_only" not in str(error.value)


def test_an_index_of_bin_files_does_not_lead_elsewhere(tmp_path):
    model, inside = tiny_switch(), tmp_path / "model"
    model.config.save_pretrained(inside)
    torch.save(model.state_dict(), tmp_path / "elsewhere.bin")
    names = dict.fromkeys(model.state_dict(), "../elsewhere.bin")
    (inside / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(CheckpointError, match=r"'\.\./elsewhere\.bin' is no name of a file beside it"):
        load_model(inside)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("decoder.block.1.layer.2.mlp.router.classifier.weight"), "1 missing .*router"),
        (lambda t: t.update(extra=torch.ones(2)), "1 unexpected .*extra"),
        (
            lambda t: t.update({"decoder.final_layer_norm.weight": torch.ones(3)}),
            "1 mismatched .*decoder.final_layer_norm",
        ),
        (lambda t: t["encoder.final_layer_norm.weight"].fill_(float("nan")), "encoder.final.*NaN"),
    ],
    ids=["missing", "unexpected", "shape", "nan"],
)
def test_every_difference_is_an_error(saved, edit, message):
    change(saved, edit)
    with pytest.raises(CheckpointError, match=message):
        load_model(saved)


def test_another_architecture_names_those_supported(tmp_path):
    GPT2Model(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'gpt2'.*switch_transformers"):
        load_model(tmp_path)


@pytest.mark.parametrize("source", ["/no/such/place", "../place", "a/b/c", "artifacts/"])
def test_a_missing_directory_is_seen_at_once(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_config(source)


def test_a_path_is_never_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        load_model((tmp_path / "gone").relative_to(tmp_path))


@pytest.mark.parametrize("source", ["./a", "~/a", "a/", "a/b/c", "models/mixtral"])
def test_what_looks_like_a_path_is_never_asked_of_the_hub(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("models").mkdir()
    with pytest.raises(CheckpointError, match=f"{source}: no such directory{'' if source[0] == '~' else ' in '}"):
        fetch(source)
    assert is_hub_id("other/mixtral")


@pytest.mark.parametrize("source", ["../models/a", "models/a", "~/models/a"])
def test_a_relative_directory_is_found_from_below(source, tmp_path, monkeypatch):
    below = tmp_path / "queue" / "run"
    for directory in (below, tmp_path / "models" / "a"):
        directory.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(source).resolve() == tmp_path / "models" / "a"


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/no-such-model: no such directory, and no model hub"):
        load_model("nobody/no-such-model")


def test_a_tokenizer_without_padding_pads_with_the_end(tmp_path):
    tiny_switch().save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token_id == 0


def test_a_tokenizer_without_an_end_takes_that_of_the_configuration(tmp_path):
    tiny_switch().save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"a": 0, "<end>": 1, "<unk>": 2}))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert (found.eos_token, found.eos_token_id, found.pad_token_id) == ("<end>", 1, 1)
    change_config(tmp_path, lambda values: values.update(eos_token_id=None))
    with pytest.raises(CheckpointError, match="the tokenizer has no end token"):
        load_tokenizer(tmp_path)


def test_a_token_without_an_embedding_is_named(tmp_path):
    tiny_switch().save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 60}))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the tokenizer has 'a' as token 60, the model embeddings of 60 tokens"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", ["wide", None, -4, [4], 2**40, {"a": 1}])
def test_a_size_of_the_wrong_kind_is_one_line(tmp_path, value):
    tiny_mixtral().save_pretrained(tmp_path)
    change_config(tmp_path, lambda values: values.update(hidden_size=value))
    with pytest.raises(CheckpointError, match=r"hidden_size|config\.json describes no model that can be built"):
        load_config(tmp_path)


def test_a_directory_without_a_tokenizer(tmp_path):
    tiny_switch().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_tokenizer(tmp_path)


def test_truncated_weights(saved):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="its header declares"):
        load_model(saved)


def test_checking_a_source_does_not_import_transformers():
    import subprocess

    code = (
        "import sys; from pathlib import Path; from mcsmoe.checkpoint.source import check_source\n"
        "try: check_source(Path('/no/such/place'))\n"
        "except Exception as error: print(type(error).__name__, 'transformers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["CheckpointError", "False"]


@needs_golden
def test_golden_switch():
    directory = GOLDEN / "switch"
    assert json.loads((directory / "config.json").read_text())["model_type"] == "switch_transformers"
    batch, want = load_file(directory / "batch.safetensors"), load_file(directory / "forward.safetensors")
    with torch.no_grad():
        found = load_model(directory)(**batch, output_router_logits=True)
    assert torch.allclose(found.logits, want["logits"], atol=1e-4)
    for stack in ("encoder", "decoder"):
        for index, layer in enumerate((1, 3, 5)):
            router = getattr(found, f"{stack}_router_logits")[index]
            assert torch.allclose(router, want[f"{stack}_router_logits.{layer}"], atol=1e-4)
            assert torch.equal(router.argmax(-1), want[f"{stack}_expert_index.{layer}"])
