import json
import shutil
import struct
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from mcsmoe.checkpoint.header import read_header
from mcsmoe.checkpoint.writer import Piece, TensorSpec, write_safetensors
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


WHOLE = [Piece(name, None, value) for name, value in TENSORS.items()]


def test_reads_back_as_what_safetensors_writes(tmp_path):
    write_safetensors(tmp_path / "ours", SPECS, WHOLE)
    found = load_file(tmp_path / "ours")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})
    ours, theirs = (read_header(tmp_path / name) for name in ("ours", "theirs"))
    assert {name: entry.shape for name, entry in ours.items()} == {name: entry.shape for name, entry in theirs.items()}
    assert all(torch.equal(ours[name].read(), theirs[name].read()) for name in TENSORS)


def test_pieces_in_any_order_make_the_same_bytes_as_the_whole(tmp_path):
    write_safetensors(tmp_path / "whole", SPECS, WHOLE)
    entries = [Piece(name, e, entry) for name in ("stack", "half") for e, entry in enumerate(TENSORS[name])]
    rest = [piece for piece in WHOLE if piece.tensor not in ("stack", "half", "empty")]
    write_safetensors(tmp_path / "pieces", SPECS, reversed([*entries, *rest]))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_values_that_are_not_contiguous(tmp_path):
    value = torch.arange(6.0).view(2, 3).T
    write_safetensors(tmp_path / "file", {"x": TensorSpec(torch.float32, (3, 2))}, [Piece("x", None, value)])
    assert torch.equal(load_file(tmp_path / "file")["x"], value)


def test_data_is_aligned_and_metadata_has_one_key(tmp_path):
    write_safetensors(tmp_path / "file", SPECS, WHOLE)
    content = (tmp_path / "file").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 64 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % SPECS[name].dtype.itemsize == 0


def test_large_tensors_are_used_where_they_are_in_the_file(tmp_path):
    values = {"map": torch.arange(3), "b": torch.ones(64, 3), "a": torch.ones(8, 16, dtype=torch.bfloat16)}
    specs = {name: TensorSpec(value.dtype, tuple(value.shape)) for name, value in values.items()}
    write_safetensors(tmp_path / "file", specs, [Piece(name, None, value) for name, value in values.items()])
    found = read_header(tmp_path / "file")
    assert [name for name, entry in found.items() if entry.read().data_ptr() % 64] == []
    assert all(torch.equal(found[name].read(), value) for name, value in values.items())


ROW, NAN = torch.ones(2), torch.tensor([1.0, torch.nan])


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, ROW), (2, ROW)], "x: 2 of 3 entries were written"),
        ([], "x: 0 of 3 entries were written"),
        ([(0, ROW), (1, ROW), (0, ROW)], "x: entry 0 is written twice"),
        ([(2, ROW), (None, torch.ones(3, 2))], "x: entry 2 is written twice"),
        ([(3, ROW)], r"shape \[2\] for entry 3, declared is \[3, 2\]"),
        ([(-1, ROW)], "for entry -1"),
        ([(0, torch.ones(3))], r"shape \[3\] for entry 0"),
        ([(None, torch.ones(2, 3))], r"shape \[2, 3\], declared"),
        ([(0, ROW.double())], "a piece is torch.float64"),
        ([(0, NAN)], "x: NaN or infinity"),
        ([(0, -NAN.nan_to_num(torch.inf))], "x: NaN or infinity"),
    ],
)
def test_wrong_pieces_leave_no_file(tmp_path, pieces, message):
    given = [Piece("x", entry, value) for entry, value in pieces]
    with pytest.raises(CheckpointError, match=message):
        write_safetensors(tmp_path / "file", {"x": TensorSpec(torch.float32, (3, 2))}, given)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_not_declared(tmp_path):
    with pytest.raises(CheckpointError, match="y: a piece of a tensor that is not declared"):
        write_safetensors(tmp_path / "file", SPECS, [Piece("y", None, ROW)])


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(DiskFullError, match=r"\d+ bytes needed, 10 free"):
        write_safetensors(tmp_path / "file", SPECS, (pytest.fail("asked for a piece") for _ in range(1)))
    assert list(tmp_path.iterdir()) == []
