"""Headers of safetensors files: where each tensor lies, of which dtype and shape; and reading one from there."""

import json
import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcsmoe.errors import CheckpointError

# Names of dtypes in safetensors headers.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """A tensor on disk, whose first value is at byte `start` of the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The tensor, mapped from the file: what is not looked at is not read, and no other tensor keeps it in memory.

        Raises `RuntimeError` or `OSError` if the file is gone or shorter than it was.
        """
        end = self.start + self.elements * self.dtype.itemsize
        found = torch.from_file(str(self.file), shared=False, size=end, dtype=torch.uint8)[self.start :]
        if self.start % self.dtype.itemsize:
            found = found.clone()
        return found.view(self.dtype).view(self.shape)


def read_header(file: Path) -> dict[str, Entry]:
    """Read the header of one safetensors file: tensor → where it is.

    Raises `CheckpointError` if it is damaged, if the file does not have the size that it declares, and for a dtype in
    which no weights are computed, such as the packed integers of other libraries.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = {name: _entry(file, name, value, 8 + length) for name, value in header.items()}
        spans = sorted(tuple(value["data_offsets"]) for value in header.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"{file}: damaged header ({error}); copy the file again") from None
    if any(end != start for (_, end), (start, _) in pairwise([(0, 0), *spans])):
        raise CheckpointError(f"{file}: damaged header (tensors overlap, or there are gaps); copy the file again")
    end = spans[-1][1] if spans else 0
    if 8 + length + end != size:
        raise CheckpointError(f"{file}: {size} bytes, its header declares {8 + length + end}; copy it again")
    return entries


def _entry(file: Path, name: str, value: dict[str, Any], data: int) -> Entry:
    code, shape, (start, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"{name}: sizes that are no numbers")
    if code not in DTYPES:
        what = f"{name} is stored as {code}, packed weights that cannot be restored"
        raise CheckpointError(f"{file}: {what}; take the model in bfloat16")
    entry = Entry(file, shape, DTYPES[code], data + start)
    if end - start != entry.elements * entry.dtype.itemsize:
        raise ValueError(f"{name}: {end - start} bytes for shape {list(shape)} in {code}")
    return entry
