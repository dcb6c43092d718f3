import json

import pytest
import torch
from safetensors.torch import save_file

from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.errors import CheckpointError

TENSORS = {
    "a": torch.arange(6.0, dtype=torch.bfloat16).view(2, 3),
    "b": torch.tensor([1, 2]),
    "c": torch.ones(4),
}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "any"}')
    save_file(TENSORS, tmp_path / WEIGHTS, metadata={"format": "pt"})
    return tmp_path


def shard(directory):
    (directory / WEIGHTS).unlink()
    places = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    save_file({"a": TENSORS["a"]}, directory / "one.safetensors")
    save_file({"b": TENSORS["b"], "c": TENSORS["c"]}, directory / "two.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("sharded", [False, True])
def test_names_shapes_dtypes_values_and_bytes(directory, sharded):
    if sharded:
        shard(directory)
    checkpoint = Checkpoint(directory)
    assert checkpoint.config == {"model_type": "any", "dtype": "bfloat16"}
    assert checkpoint.names() == ["a", "b", "c"]
    for name, value in TENSORS.items():
        assert checkpoint.shape(name) == tuple(value.shape)
        assert checkpoint.dtype(name) == value.dtype
        assert torch.equal(checkpoint.tensor(name), value)
    assert checkpoint.size_bytes == sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def test_missing_directory(tmp_path):
    with pytest.raises(CheckpointError, match="gone: no such directory"):
        Checkpoint(tmp_path / "gone")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_missing_file(directory, name):
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=f"no {name}"):
        Checkpoint(directory)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_config(directory, text):
    (directory / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json.*not"):
        Checkpoint(directory)


@pytest.mark.parametrize("change", ["{}", '{"weight_map": 3}'])
def test_damaged_index(directory, change):
    shard(directory)
    (directory / INDEX).write_text(change)
    with pytest.raises(CheckpointError, match="weight_map"):
        Checkpoint(directory)


def test_missing_shard(directory):
    shard(directory)
    (directory / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard two\.safetensors is missing"):
        Checkpoint(directory)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/hosts", "", ".", "..", "a/../b", "a/b", "a\0b", 3, None])
def test_a_shard_is_a_file_beside_the_index(directory, name):
    shard(directory)
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match=r"index\.json: .* is no name of a file beside it"):
        Checkpoint(directory)


@pytest.mark.parametrize("length", [0, 4, 30, -1])
def test_truncated_weights_are_seen_at_opening(directory, length):
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*again"):
        Checkpoint(directory)


@pytest.mark.parametrize("damage", [b"\xff" * 8, b"x" * 40])
def test_corrupt_header(directory, damage):
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(damage + whole[len(damage) :])
    with pytest.raises(CheckpointError, match="damaged header"):
        Checkpoint(directory)


def test_unknown_tensor(directory):
    with pytest.raises(CheckpointError, match="no tensor experts"):
        Checkpoint(directory).tensor("experts")


def test_headers_are_read_once(directory):
    """Else each of ten thousand tensors would cost the parsing of ten thousand entries."""
    checkpoint = Checkpoint(directory)
    with (directory / WEIGHTS).open("r+b") as file:
        file.write(bytes(16))
    for name, value in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), value)
        assert torch.equal(checkpoint.part(name, 1), value[1])


def test_a_file_that_was_cut_after_opening(directory):
    checkpoint = Checkpoint(directory)
    with (directory / WEIGHTS).open("r+b") as file:
        file.truncate(40)
    with pytest.raises(CheckpointError, match=r"cannot read a .*copy the file again"):
        checkpoint.tensor("a")


def test_changing_a_tensor_that_was_read_changes_no_file(directory):
    Checkpoint(directory).tensor("c").zero_()
    assert Checkpoint(directory).tensor("c").equal(TENSORS["c"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_must_be_finite(directory, value):
    save_file({"a": torch.tensor([1.0, value])}, directory / WEIGHTS)
    with pytest.raises(CheckpointError, match="a holds NaN or infinity"):
        Checkpoint(directory).tensor("a")


def test_a_matrix_of_absurd_values_is_named(directory):
    save_file({"a": torch.full((2, 2), -1e30), "mask": torch.tensor([-1e30])}, directory / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"a holds 1e\+30, which no weight is"):
        Checkpoint(directory).tensor("a")
    assert Checkpoint(directory).tensor("mask") < 0
