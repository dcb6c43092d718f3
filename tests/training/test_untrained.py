"""A model that is taken as it came, from files of each kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.errors import CheckpointError, ConflictError
from mcsmoe.params import ModelSection, Params, TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from mcsmoe.training.untrained import take
from tests.checkpoint.damage import change
from tests.families import models as families
from tests.methods.params import small_params

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""What four bits of MXFP4 stand for; the highest bit is the sign (OCP Microscaling Formats, table 5)."""


def settings(source: Path) -> ModelSection:
    origin: dict[str, Any] = {
        "source": str(source),
        "hub": None,
        "revision": None,
        "dense_source": None,
        "dense_hub": None,
    }
    return ModelSection(**origin, trust_remote_code=False, config={}, tokenizer=None)


def saved(model: Any, directory: Path, **options: Any) -> Path:
    model.save_pretrained(directory, **options)
    train_tokenizer(["some words"], TokenizerSection(kind="word", vocab_size=10)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_safetensors_are_copied_byte_by_byte(tmp_path: Path, options: dict[str, str]):
    source = saved(families.small_model("mixtral"), tmp_path / "source", **options)
    for path in source.glob("*.safetensors"):  # saving the loaded model would lose this
        save_file(load_file(path), path, metadata={"format": "pt", "made by": "somebody"})
    (source / "consolidated.safetensors").write_bytes(b"the same weights in another format")
    take(settings(source), tmp_path / "output")
    kept = {path.name for path in source.iterdir()} - {"consolidated.safetensors"}
    assert {path.name for path in (tmp_path / "output").iterdir()} == kept
    for name in kept - {"config.json", "tokenizer_config.json"}:  # these get names that older programs read
        assert (source / name).read_bytes() == (tmp_path / "output" / name).read_bytes()


def test_a_pickled_checkpoint_is_saved_anew(tmp_path: Path):
    model = families.small_model("mixtral")
    source = saved(model, tmp_path / "source")
    torch.save(load_file(source / WEIGHTS), source / "pytorch_model.bin")
    (source / WEIGHTS).unlink()
    take(settings(source), tmp_path / "output")
    taken = load_model(tmp_path / "output").state_dict()
    assert all(value.equal(taken[name]) for name, value in model.state_dict().items())


def test_quantised_experts_are_restored(tmp_path: Path):
    """As gpt-oss lies on the hub: two values of four bits a byte, a power of two for each 32 values."""
    source = saved(families.small_model("gpt_oss", intermediate_size=64).bfloat16(), tmp_path / "source")
    generator = torch.Generator().manual_seed(0)
    tensors, expected = {}, {}
    for name, value in load_file(source / WEIGHTS).items():
        if not name.endswith("_proj") or ".experts." not in name:
            tensors[name] = value
            continue
        experts, inputs, outputs = value.shape
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(118, 124, blocks.shape[:3], dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        nibbles = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()  # [E, outputs, inputs / 32, 32]
        signed = torch.where(nibbles >= 8, -VALUES[nibbles % 8], VALUES[nibbles % 8])
        expected[name] = (signed * torch.exp2(scales[..., None] - 127.0)).flatten(-2).mT.bfloat16()
    save_file(tensors, source / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (source / "config.json").write_text(json.dumps(config))
    take(settings(source), tmp_path / "output")
    assert "quantization_config" not in json.loads((tmp_path / "output/config.json").read_text())
    taken = load_file(tmp_path / "output" / WEIGHTS)
    assert expected
    assert all(value.equal(taken[name]) for name, value in expected.items())


def test_a_checkpoint_that_lacks_a_tensor_leaves_nothing(tmp_path: Path):
    source = saved(families.small_model("mixtral"), tmp_path / "source")
    tensors = load_file(source / WEIGHTS)
    save_file(dict(list(tensors.items())[1:]), source / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 missing tensors"):
        take(settings(source), tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_nothing_to_take_is_refused():
    given = small_params()
    given["finetune"]["epochs"] = 0
    with pytest.raises(ConflictError, match=r"give model.source or model.hub"):
        Params.parse(given)


def reading_images() -> Any:
    """A small Llama 4 as on the hub: a language model of two layers, and an eye."""
    text = families.small_model("llama4_text").config.to_dict()
    sizes = ("hidden_size", "vision_output_dim", "projector_input_dim", "projector_output_dim")
    vision = dict.fromkeys(sizes, 32) | {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision |= {"image_size": 28, "patch_size": 14}
    config = transformers.Llama4Config(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = transformers.Llama4ForConditionalGeneration(config).eval()
    for value in model.parameters():
        value.data.copy_(torch.randn(value.shape) * 0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_a_model_that_reads_images_the_language_model_is_taken(tmp_path: Path, dtype: torch.dtype):
    model = reading_images().to(dtype)
    source, output = saved(model, tmp_path / "source"), tmp_path / "output"
    assert "vision_model.class_embedding" in Checkpoint(source).names()
    assert load_config(source).model_type == "llama4_text"
    take(settings(source), output)
    model.language_model.save_pretrained(tmp_path / "expected")
    taken, expected = Checkpoint(output), Checkpoint(tmp_path / "expected")
    assert taken.names() == expected.names()
    assert all(taken.tensor(name).equal(expected.tensor(name)) for name in taken.names())
    assert taken.config["model_type"] == "llama4_text"
    assert taken.config["architectures"] == expected.config["architectures"]
    for directory in (source, output):  # training starts from either
        found = load_model(directory)
        assert found.dtype == dtype
        with torch.no_grad():
            logits = (each(**families.batch()).logits for each in (found, load_model(tmp_path / "expected")))
            assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.feed_forward.experts.down_proj"])
def test_a_language_model_that_is_not_whole_is_refused(tmp_path: Path, name: str):
    source = saved(reading_images(), tmp_path / "source")
    change(source, lambda tensors: tensors.pop(f"language_model.{name}"))
    with pytest.raises(CheckpointError, match=f"1 missing tensors, the first is {name}"):
        take(settings(source), tmp_path / "output")
    with pytest.raises(CheckpointError, match="1 missing tensors"):
        load_model(source)
