"""Writing a safetensors file piece by piece: the header first, then one tensor or one entry at a time."""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_128_hexdigest

from mcsmoe.checkpoint.header import DTYPES
from mcsmoe.checkpoint.output import check_room
from mcsmoe.checkpoint.reader import all_finite
from mcsmoe.errors import CheckpointError


class Piece(NamedTuple):
    """A whole tensor (`entry` None), or one entry or slice of it along its first axis, with its values."""

    tensor: str
    entry: int | slice | None
    value: Tensor


Written = dict[str, dict[str, str]]
"""Content hashes of written pieces, computed in memory: `{"shared.weight": {"": HASH}, "….wi": {"0:1": HASH, …}}`.

The inner key is "start:stop" along the first axis, or "" for the whole tensor. JSON can store it.
"""


def written_pieces(pieces: Iterable[Piece]) -> Written:
    """Content hashes of `pieces`, which are consumed one at a time."""
    written: Written = {}
    for piece in pieces:
        add(written, piece)
    return written


def add(written: Written, piece: Piece) -> None:
    """Add the content hash of one piece to `written`."""
    written.setdefault(piece.tensor, {})[_place(piece.entry)] = content_hash(piece.value)


def differing(written: Written, name: str, value: Tensor) -> str | None:
    """The first piece of the tensor `value` that differs from what was written, such as "….wi[0:1]"; None if equal."""
    for place, expected in written.get(name, {}).items():
        found = value[slice(*map(int, place.split(":")))] if place else value
        if content_hash(found) != expected:
            return f"{name}[{place}]" if place else name
    return None


def known(written: Written, piece: Piece) -> bool:
    """Whether `written` holds this piece, or all pieces of this tensor, with these values."""
    places = written.get(piece.tensor, {})
    if piece.entry is None and places:
        return differing(written, piece.tensor, piece.value) is None
    return _place(piece.entry) in places and places[_place(piece.entry)] == content_hash(piece.value)


def _place(entry: int | slice | None) -> str:
    if entry is None:
        return ""
    return f"{entry}:{entry + 1}" if isinstance(entry, int) else f"{entry.start}:{entry.stop}"


def content_hash(value: Tensor) -> str:
    """The hash of a tensor's bytes."""
    return xxh3_128_hexdigest(raw(value))


CODES = {dtype: code for code, dtype in DTYPES.items()}
ALIGNMENT = 64
"""Bytes, as in torch's allocator: tensors mapped from the file are then used where they are, without a copy."""


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
    """Write the tensors of `specs` from `pieces`, which may come in any order.

    Returns content hashes of what was written, to verify the file later. A piece is written while the next is made.
    Peak memory is two pieces, so a stack [K, f, d] can be written expert by expert.
    Raises `DiskFullError` before anything is written, and `CheckpointError` for a piece of the wrong dtype or shape,
    an entry that is written twice or missing at the end, and NaN or infinity; the unfinished file is removed.
    """
    header, starts = _header(specs)
    check_room(path, len(header) + sum(spec.size_bytes for spec in specs.values()))
    written: Written = {}
    done: dict[str, set[int]] = {name: set() for name in specs}
    try:
        with path.open("wb") as file, ThreadPoolExecutor(1) as beside:
            file.write(header)

            def write(piece: Piece) -> None:
                if not all_finite(piece.value):
                    raise CheckpointError(f"{piece.tensor}: NaN or infinity in the values to write")
                add(written, piece)
                skipped = _rows(specs[piece.tensor], piece.entry).start * specs[piece.tensor].row_bytes
                file.seek(len(header) + starts[piece.tensor] + skipped)
                file.write(raw(piece.value))

            last: Future[None] | None = None
            for piece in pieces:
                _check(specs, done, piece)
                if last is not None:
                    last.result()
                last = beside.submit(write, piece)
            if last is not None:
                last.result()
            for name, spec in specs.items():
                if len(done[name]) < _entries(spec) and spec.size_bytes:
                    raise CheckpointError(f"{name}: {len(done[name])} of {_entries(spec)} entries were written")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return written


def piece_shape(spec: TensorSpec, entry: int | slice | None) -> tuple[int, ...]:
    """The shape that a piece must have: [K, f, d] for None, [f, d] for an entry, [n, f, d] for a slice of n."""
    if entry is None:
        return spec.shape
    return spec.shape[1:] if isinstance(entry, int) else (len(_rows(spec, entry)), *spec.shape[1:])


def _rows(spec: TensorSpec, entry: int | slice | None) -> range:
    """Entries along the first axis that a piece fills; they are not checked against the tensor's shape."""
    if entry is None:
        return range(_entries(spec))
    return range(entry, entry + 1) if isinstance(entry, int) else range(entry.start, entry.stop)


def _entries(spec: TensorSpec) -> int:
    return spec.shape[0] if spec.shape else 1


def _order(specs: Mapping[str, TensorSpec]) -> list[str]:
    # Tensors after which the next is aligned come first; the others by width, aligned to their own item size.
    return sorted(specs, key=lambda name: (specs[name].size_bytes % ALIGNMENT > 0, -specs[name].dtype.itemsize, name))


def _header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The header, and where each tensor starts after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, start = {}, 0
    for name in _order(specs):
        spec = specs[name]
        end = start + spec.size_bytes
        entries[name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        starts[name], start = start, end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, starts


def _check(specs: Mapping[str, TensorSpec], entered: Mapping[str, set[int]], piece: Piece) -> None:
    """Check one piece, and record its entries in `entered`: tensor → entries written so far."""
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
    done.update(rows)


def raw(value: Tensor) -> memoryview:
    """The bytes of a CPU tensor, without a copy if it is contiguous."""
    return value.detach().contiguous().view(-1).view(torch.uint8).numpy().data
