"""What travels with the weights of a checkpoint, and what is changed in it for older programs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from mcsmoe.checkpoint.companions import companions, complete, own_code
from mcsmoe.checkpoint.older import for_older_programs, tokenizer_for_older_programs
from mcsmoe.checkpoint.reader import WEIGHTS
from mcsmoe.checkpoint.save import save_model
from mcsmoe.errors import CheckpointError
from mcsmoe.families import configuration
from mcsmoe.model_types import FUSED
from tests.models import tiny_switch

TRAVEL = [
    "LICENSE",
    "added_tokens.json",
    "additional_chat_templates/tool.jinja",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "moon.tiktoken",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenization_moon.py",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
]
STAY = [
    ".gitattributes",
    ".cache/tokenizer.json",
    "README.md",
    "consolidated.00.pth",
    "export.json",
    "model-00001-of-00002.safetensors",
    "model.Q4.gguf",
    "model.safetensors.index.json",
    "onnx/tokenizer.json",
    "optimizer.pt",
    "plan.json",
    "pytorch_model.bin",
    "shrink.json",
]


def place(directory: Path, config: dict[str, Any], *files: str, tensors: tuple[str, ...] = ("lm_head.weight",)) -> Path:
    """A checkpoint with this config.json, and with `files` that hold their own names."""
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file({name: torch.zeros(1) for name in tensors}, directory / WEIGHTS)
    return directory


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_every_kind_of_tokenizer_travels_and_no_weights(tmp_path: Path):
    source = place(tmp_path / "source", {"model_type": "mixtral"}, *TRAVEL, *STAY)
    assert [str(path) for path in companions(source)] == sorted(TRAVEL)
    output = place(tmp_path / "output", {"model_type": "mixtral"})
    complete(output, source)
    assert all((output / name).read_text() == name for name in TRAVEL)
    assert not any((output / name).exists() for name in STAY if name != WEIGHTS)


def test_a_saved_model_takes_the_tokenizer_as_it_is_on_disk(tmp_path: Path):
    source = place(tmp_path / "source", {"model_type": "switch_transformers"}, "spiece.model", TRAVEL[2])
    model = tiny_switch()
    # Saving this after a change would be refused: `temperature` does nothing without sampling.
    (source / "generation_config.json").write_text(
        '{"temperature": 0.5, "do_sample": false, "decoder_start_token_id": 0}'
    )
    model.generation_config = transformers.GenerationConfig.from_pretrained(source)
    save_model(model, None, tmp_path / "output", source)
    assert (tmp_path / "output/spiece.model").is_file()
    assert (tmp_path / "output" / TRAVEL[2]).is_file()
    assert read(tmp_path / "output/generation_config.json")["temperature"] == 0.5


def test_links_out_of_the_directory_are_not_followed(tmp_path: Path):
    source, secret = place(tmp_path / "source", {}, "vocab.json"), tmp_path / "secret"
    secret.write_text("of somebody")
    (source / "merges.txt").symlink_to("vocab.json")
    (source / "README.md").symlink_to(secret)  # does not travel
    assert [str(path) for path in companions(source)] == ["merges.txt", "vocab.json"]
    (source / "tokenizer.model").symlink_to(secret)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.model: a link to .*secret, outside the checkpoint; put a copy"
    ):
        list(companions(source))


def test_links_into_a_store_by_content_are_followed(tmp_path: Path):
    """As in the cache of the hub: snapshots/REVISION/vocab.json → ../../blobs/HASH."""
    blob = tmp_path / "blobs" / ("0f" * 20)
    blob.parent.mkdir()
    blob.write_text("{}")
    source = place(tmp_path / "snapshots/1", {}, "merges.txt")
    (source / "vocab.json").symlink_to(Path(os.path.relpath(blob, source)))
    assert [str(path) for path in companions(source)] == ["merges.txt", "vocab.json"]


CLASSES = {"AutoConfig": "configuration_phimoe.PhiMoEConfig", "AutoModel": "owner/name--modeling_phimoe.PhiMoEModel"}


def test_code_is_named_only_where_it_is(tmp_path: Path):
    config = {"model_type": "phimoe", "auto_map": CLASSES}
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_moon.MoonTokenizer", None]}}
    for files in ([], ["configuration_phimoe.py", "tokenization_moon.py"]):
        name = f"with {len(files)}"
        source = place(tmp_path / name, config, *files)
        (source / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        complete(place(tmp_path / f"{name} out", config), source)
        written = read(tmp_path / f"{name} out/config.json")["auto_map"]
        assert written == (CLASSES if files else {"AutoModel": CLASSES["AutoModel"]})
        assert read(tmp_path / f"{name} out/tokenizer_config.json") == (tokenizer if files else {})
        assert not own_code(config)


def test_files_that_need_no_change_keep_their_bytes(tmp_path: Path):
    text = '{"model_type":"switch_transformers",\r\n "é": 1e-06}'
    output = place(tmp_path / "output", {})
    (output / "config.json").write_bytes(text.encode())
    complete(output)
    assert (output / "config.json").read_bytes() == text.encode()


ROPE = {"rope_type": "default", "rope_theta": 777.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("rope", "older"),
    [
        (ROPE, {"rope_theta": 777.0, "rope_scaling": None}),
        (
            ROPE | {"partial_rotary_factor": 0.5},
            {"rope_theta": 777.0, "partial_rotary_factor": 0.5, "rope_scaling": None},
        ),
        (YARN | {"rope_theta": 5.0}, {"rope_theta": 5.0, "rope_scaling": YARN}),
        (
            {"full_attention": ROPE | YARN, "sliding_attention": ROPE | {"rope_theta": 9.0}},
            {"rope_theta": 777.0, "rope_local_base_freq": 9.0},
        ),
        ({"full_attention": ROPE, "sliding_attention": None}, {"rope_theta": 777.0}),
        ({}, {}),
        (None, {}),
    ],
)
def test_positions_by_their_older_names(rope: Any, older: dict[str, Any]):
    values = {"model_type": "x", "rope_parameters": rope}
    assert for_older_programs(values, {}) == values | older


@pytest.mark.parametrize("model_type", FUSED)
def test_transformers_5_reads_the_same_from_old_and_new_names(model_type: str):
    """With a rope theta, and scaling, that are not the defaults of the family."""
    plain = transformers.AutoConfig.for_model(model_type).to_dict()
    kinds = plain.get("rope_parameters") or {}
    if "rope_theta" in kinds:
        # Phi's class knows scaling by two factors only.
        plain["rope_parameters"] = kinds | {"rope_theta": 777.0} | (YARN if model_type != "phimoe" else {})
        plain.pop("rope_theta", None)
    elif kinds:
        plain["rope_parameters"] = {name: kind | {"rope_theta": 777.0} for name, kind in kinds.items()}
    before = configuration(json.loads(json.dumps(plain)))
    after = configuration(for_older_programs(json.loads(json.dumps(plain)), {}))
    assert after.to_dict().get("rope_parameters") == before.to_dict().get("rope_parameters")


def test_the_number_of_experts_by_its_older_name():
    config = {"model_type": "qwen3_moe", "num_local_experts": 8}
    assert for_older_programs(config, {}) == config | {"num_experts": 8}
    for same in (config | {"num_experts": 8}, config | {"model_type": "mcsmoe_qwen3_moe"}, {"model_type": "t5"}):
        assert for_older_programs(same, {}) == same


def test_the_published_name_of_a_class():
    config = {"model_type": "phimoe", "architectures": ["PhimoeForCausalLM"]}
    assert for_older_programs(config, {})["architectures"] == ["PhiMoEForCausalLM"]
    source = {"model_type": "phimoe", "architectures": ["AsPublished"]}
    assert for_older_programs(config, source)["architectures"] == ["AsPublished"]
    merged = config | {"model_type": "mcsmoe_phimoe", "architectures": ["MCSMoEPhimoeForCausalLM"]}
    assert for_older_programs(merged, source)["architectures"] == merged["architectures"]


def test_layers_that_predict_further_tokens_are_announced_only_where_they_are():
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    assert for_older_programs(config, {}, keeps_draft=False)["num_nextn_predict_layers"] == 0
    assert for_older_programs(config, {}, keeps_draft=True)["num_nextn_predict_layers"] == 1


def test_classes_of_tokenizers_that_transformers_4_knows():
    values = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<x>"], "pad_token": "<pad>"}
    older = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<x>"], "pad_token": "<pad>"}
    assert tokenizer_for_older_programs(values) == older
    kept = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": {"image_token": "<x>"}}
    assert tokenizer_for_older_programs(kept) == kept
