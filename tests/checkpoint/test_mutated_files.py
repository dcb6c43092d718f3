"""Every file of a checkpoint, damaged in seeded ways: it loads, or is refused in one line.

`MUTATIONS=1000 python -m pytest tests/checkpoint/test_mutated_files.py` tries a thousand damages of each file.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.pickled import PICKLED
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.errors import CheckpointError
from tests.causal import tiny_mixtral
from tests.mutations import COUNT, mutated, right_or_one_line

SIZES = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 8, "num_hidden_layers": 1, "num_local_experts": 2}


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """A checkpoint of each form: one file, shards, and `.bin`."""
    directory = tmp_path_factory.mktemp("whole")
    for form, size in (("one", "1GB"), ("shards", "5KB"), ("bin", "1GB")):
        tiny_mixtral(**SIZES).save_pretrained(directory / form, max_shard_size=size)
        tokenizer.save_pretrained(directory / form)
    torch.save(load_file(directory / "bin" / WEIGHTS), directory / "bin" / PICKLED)
    (directory / "bin" / WEIGHTS).unlink()
    return directory


def read(directory):
    for name in (found := Checkpoint(directory)).names():
        found.tensor(name)


@pytest.mark.parametrize(
    ("form", "name", "reads"),
    [
        ("one", "config.json", [load_config]),
        ("one", "tokenizer.json", [load_tokenizer]),
        ("one", "tokenizer_config.json", [load_tokenizer]),
        ("one", WEIGHTS, [read]),
        ("shards", INDEX, [read]),
        ("bin", PICKLED, [load_config]),
        ("bin", PICKLED, [load_model]),
    ],
)
@pytest.mark.parametrize("seed", range(0, COUNT, 10))
def test_a_damaged_file_is_refused_in_one_line(whole, form, name, reads, seed, tmp_path):
    directory = shutil.copytree(whole / form, tmp_path / "copy")
    for each in range(seed, seed + 10):
        (directory / name).write_bytes(mutated((whole / form / name).read_bytes(), each))
        for reader in reads:
            with right_or_one_line():
                reader(directory)


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_local_experts", "hidden_size", "max_position_embeddings"])
def test_an_absurd_size_is_refused_at_once(whole, field, tmp_path):
    directory = shutil.copytree(whole / "one", tmp_path / "copy")
    text = (directory / "config.json").read_text()
    (directory / "config.json").write_text(text.replace(f'"{field}": ', f'"{field}": {2**63 // 10**6}', 1))
    with pytest.raises(CheckpointError, match=rf"{field} = \d+ is absurd: at most"):
        load_config(directory)
