import json
import shutil
import struct
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcsmoe.checkpoint.writer import TensorSpec, write_safetensors
from mcsmoe.errors import CheckpointError, DiskFullError

TENSORS = {
    "stack": torch.arange(24.0).view(4, 3, 2),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "map": torch.tensor([0, 1, 0]),
    "flag": torch.tensor([True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 7),
}
SPECS = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in TENSORS.items()}


def whole(name):
    return [TENSORS[name]]


def test_reads_back_and_equals_what_safetensors_writes(tmp_path):
    write_safetensors(tmp_path / "ours", SPECS, whole)
    found = load_file(tmp_path / "ours")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    kinds = {name: value for name, value in TENSORS.items() if name != "flag"}
    write_safetensors(tmp_path / "ours", {name: SPECS[name] for name in kinds}, whole)
    save_file(kinds, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_chunks_make_the_same_bytes_as_the_whole(tmp_path):
    write_safetensors(tmp_path / "whole", SPECS, whole)
    write_safetensors(tmp_path / "chunks", SPECS, lambda n: TENSORS[n] if n == "stack" else [TENSORS[n]])
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "chunks").read_bytes()


def test_slices_that_are_not_contiguous(tmp_path):
    value = torch.arange(6.0).view(2, 3).T
    write_safetensors(tmp_path / "file", {"x": TensorSpec(torch.float32, (3, 2))}, lambda _: [value])
    assert torch.equal(load_file(tmp_path / "file")["x"], value)


def test_data_is_aligned_and_metadata_has_one_key(tmp_path):
    write_safetensors(tmp_path / "file", SPECS, whole)
    content = (tmp_path / "file").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % SPECS[name].dtype.itemsize == 0


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([torch.ones(2, 2)], "16 bytes to write, 24 declared"),
        ([torch.ones(3, 2), torch.ones(1)], "28 bytes to write, 24 declared"),
        ([torch.ones(3, 2, dtype=torch.float64)], "a chunk is torch.float64"),
        ([torch.full((3, 2), float("nan"))], "x: NaN or infinity"),
    ],
)
def test_wrong_chunks_leave_no_file(tmp_path, chunks, message):
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path / "file", {"x": TensorSpec(torch.float32, (3, 2))}, lambda _: chunks)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(DiskFullError, match=r"\d+ bytes needed, 10 free"):
        write_safetensors(tmp_path / "file", SPECS, lambda _: pytest.fail("asked for a tensor"))
    assert list(tmp_path.iterdir()) == []
