"""Streaming a safetensors file: the header first, then one tensor, or one entry of it, at a time."""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from mcsmoe.checkpoint.output import check_room
from mcsmoe.checkpoint.reader import DTYPES, all_finite
from mcsmoe.errors import CheckpointError


class Piece(NamedTuple):
    """All values of a tensor, or of one entry along its first axis, or of a slice of them."""

    tensor: str
    entry: int | slice | None
    value: Tensor


Written = dict[str, dict[str, str]]
"""Tensor → its pieces, "start:stop" along the first axis or "" for all of it → hash of the bytes in memory; JSON."""


def written_pieces(pieces: Iterable[Piece]) -> Written:
    """Hashes of pieces, one of which is in memory at a time."""
    written: Written = {}
    for piece in pieces:
        add(written, piece)
    return written


def add(written: Written, piece: Piece) -> None:
    """Enter one more piece."""
    written.setdefault(piece.tensor, {})[_place(piece.entry)] = _hash(piece.value)


def differing(written: Written, name: str, value: Tensor) -> str | None:
    """The first piece of a whole tensor that is not what was written; None where all are."""
    for place, expected in written.get(name, {}).items():
        found = value[slice(*map(int, place.split(":")))] if place else value
        if _hash(found) != expected:
            return f"{name}[{place}]" if place else name
    return None


def _place(entry: int | slice | None) -> str:
    if entry is None:
        return ""
    return f"{entry}:{entry + 1}" if isinstance(entry, int) else f"{entry.start}:{entry.stop}"


def _hash(value: Tensor) -> str:
    return xxh3_128_hexdigest(raw(value))


CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNMENT = 8


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of a tensor that is still to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry along the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def write_safetensors(path: Path, specs: Mapping[str, TensorSpec], pieces: Iterable[Piece]) -> Written:
    """Write the tensors of `specs` from `pieces`, which may come in any order: each goes to its place in the file.

    Gives what was written, to compare with what lies there then. Peak memory is one piece, so that the stacks
    [K, f, d] of an expert's tensors can be written expert by expert.
    Raises `DiskFullError` before anything is written, `CheckpointError` for a piece of another dtype or shape, one
    that was written before or is missing in the end, and for NaN or infinity; an unfinished file is removed.
    """
    header, starts = _header(specs)
    check_room(path, len(header) + sum(spec.size_bytes for spec in specs.values()))
    written: Written = {}
    done: dict[str, set[int]] = {name: set() for name in specs}
    try:
        with path.open("wb") as file:
            file.write(header)
            for name, entry, value in pieces:
                _check(specs, done, Piece(name, entry, value))
                add(written, Piece(name, entry, value))
                skipped = _rows(specs[name], entry).start * specs[name].row_bytes
                file.seek(len(header) + starts[name] + skipped)
                file.write(raw(value))
            for name, spec in specs.items():
                if len(done[name]) < _entries(spec) and spec.size_bytes:
                    raise CheckpointError(f"{name}: {len(done[name])} of {_entries(spec)} entries were written")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return written


def piece_shape(spec: TensorSpec, entry: int | slice | None) -> tuple[int, ...]:
    """The shape of a piece."""
    if entry is None:
        return spec.shape
    return spec.shape[1:] if isinstance(entry, int) else (len(_rows(spec, entry)), *spec.shape[1:])


def _rows(spec: TensorSpec, entry: int | slice | None) -> range:
    """Entries along the first axis that a piece fills, whether the tensor has them or not."""
    if entry is None:
        return range(_entries(spec))
    return range(entry, entry + 1) if isinstance(entry, int) else range(entry.start, entry.stop)


def _entries(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.shape else 1


def _order(specs: Mapping[str, TensorSpec]) -> list[str]:
    # Wide dtypes first keeps every tensor aligned to its own item size.
    return sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))


def _header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The header, and where each tensor starts after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # a second key would shuffle between runs
    starts, start = {}, 0
    for name in _order(specs):
        spec = specs[name]
        end = start + spec.size_bytes
        entries[name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        starts[name], start = start, end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, starts


def _check(specs: Mapping[str, TensorSpec], entered: Mapping[str, set[int]], piece: Piece) -> None:
    """Check one piece, and note it in `entered`: the entries of each tensor that are there."""
    name, entry, value = piece
    if name not in specs:
        raise CheckpointError(f"{name}: a piece of a tensor that is not declared")
    spec, done = specs[name], entered[name]
    if value.dtype != spec.dtype:
        raise CheckpointError(f"{name}: a piece is {value.dtype}, declared is {spec.dtype}")
    rows = _rows(spec, entry)
    if tuple(value.shape) != piece_shape(spec, entry) or rows.start < 0 or rows.stop > _entries(spec):
        place = "" if entry is None else f" for entry {entry}"
        raise CheckpointError(f"{name}: a piece of shape {list(value.shape)}{place}, declared is {list(spec.shape)}")
    if not done.isdisjoint(rows):
        raise CheckpointError(f"{name}: entry {min(done.intersection(rows))} is written twice")
    if not all_finite(value):
        raise CheckpointError(f"{name}: NaN or infinity in the values to write")
    done.update(rows)


def raw(value: Tensor) -> memoryview:
    """The bytes of a tensor in main memory, without a copy where it is contiguous."""
    return value.detach().contiguous().view(-1).view(torch.uint8).numpy().data
