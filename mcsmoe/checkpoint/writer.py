"""Streaming a safetensors file: the header first, then one tensor, or one slice of it, at a time."""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.checkpoint.reader import DTYPES
from mcsmoe.checkpoint.room import check_room
from mcsmoe.errors import CheckpointError

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


def write_safetensors(path: Path, specs: Mapping[str, TensorSpec], chunks: Callable[[str], Iterable[Tensor]]) -> None:
    """Write the tensors of `specs`; `chunks(name)` yields each one's consecutive slices, in order.

    A stack [K, f, d] can so be written expert by expert: peak memory is one chunk. Tensors are asked for in
    the order of the file, by dtype size and name as safetensors sorts them.
    Raises `DiskFullError` before anything is written, `CheckpointError` for a chunk of another dtype, for
    more or fewer bytes than declared, and for NaN or infinity; an unfinished file is removed.
    """
    header = _header(specs)
    check_room(path, len(header) + sum(spec.size_bytes for spec in specs.values()))
    try:
        with path.open("wb") as file:
            file.write(header)
            for name in _order(specs):
                written = 0
                for chunk in chunks(name):
                    _check(name, specs[name], chunk)
                    file.write(chunk.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
                    written += chunk.nbytes
                if written != specs[name].size_bytes:
                    raise CheckpointError(f"{name}: {written} bytes to write, {specs[name].size_bytes} declared")
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _order(specs: Mapping[str, TensorSpec]) -> list[str]:
    # Wide dtypes first keeps every tensor aligned to its own item size.
    return sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))


def _header(specs: Mapping[str, TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # a second key would shuffle between runs
    start = 0
    for name in _order(specs):
        spec = specs[name]
        end = start + spec.size_bytes
        entries[name] = {"dtype": CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _check(name: str, spec: TensorSpec, chunk: Tensor) -> None:
    if chunk.dtype != spec.dtype:
        raise CheckpointError(f"{name}: a chunk is {chunk.dtype}, declared is {spec.dtype}")
    if chunk.is_floating_point() and not chunk.isfinite().all():
        raise CheckpointError(f"{name}: NaN or infinity in the values to write")
