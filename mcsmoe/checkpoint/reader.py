"""Lazy reading of a checkpoint directory: headers when it is opened, tensors one at a time on request."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mcsmoe.checkpoint.paths import inside
from mcsmoe.errors import CheckpointError


def all_finite(value: Tensor) -> bool:
    """True if no value is NaN or infinite; integers are always finite.

    Checks minimum and maximum, which are NaN if any value is: `isfinite` would allocate three temporary tensors.
    """
    if not value.is_floating_point() or not value.numel():
        return True
    return all(math.isfinite(float(extreme)) for extreme in value.aminmax())


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Names of dtypes in safetensors headers.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Entry:
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """A transformers directory with safetensors, in one file or in shards.

    Opening reads the headers only. `tensor` opens and closes the file on each call, so peak memory is one tensor.
    `config` is the dict of config.json. Opening and reading raise `CheckpointError` with the path, the fault and a
    remedy.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.config = _read_config(self.directory)
        self.files = _weight_files(self.directory)
        self.size_bytes = sum(file.stat().st_size for file in self.files)
        self._entries: dict[str, _Entry] = {}
        for file in self.files:
            for name, entry in _read_header(file).items():
                if name in self._entries:
                    raise CheckpointError(f"{self.directory}: tensor {name} is in two files; write it anew")
                self._entries[name] = entry

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        """One tensor. Raises `CheckpointError` for NaN or infinity."""
        return self._read(name, lambda file: file.get_tensor(name))

    def part(self, name: str, index: int | slice) -> Tensor:
        """The entry or slice `index` along the first axis of one tensor; nothing else is read. Raises as `tensor`."""
        return self._read(name, lambda file: file.get_slice(name)[index])

    def _read(self, name: str, read: Callable[[Any], Tensor]) -> Tensor:
        entry = self._entry(name)
        try:
            with safe_open(entry.file, "pt") as file:
                value = read(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{entry.file}: cannot read {name} ({error}); copy the file again") from None
        if not all_finite(value):
            raise CheckpointError(f"{entry.file}: {name} holds NaN or infinity; train or copy the model again")
        return value

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.directory}: no tensor {name}; is it a checkpoint of the kind needed?")
        return self._entries[name]


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give the path of a saved checkpoint")
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{directory / 'config.json'}: not a JSON object; copy the file again")
    return config


def read_json(path: Path) -> Any:
    """The contents of a JSON file of a checkpoint. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is it a checkpoint directory?") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy the file again") from None


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        raise CheckpointError(f"{directory}: no {WEIGHTS}; save the model with save_pretrained first")
    files = indexed_files(directory / INDEX)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{directory}: shard {file.name} is missing; copy it again")
    return files


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names. Raises `CheckpointError` for a damaged index, or a name that leads elsewhere."""
    values = read_json(index)
    try:
        names = sorted(set(values["weight_map"].values()))
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: no weight_map; copy the file again") from None
    return [inside(index.parent, name, index) for name in names]


def _read_header(file: Path) -> dict[str, _Entry]:
    """Read the header of one safetensors file.

    Raises `CheckpointError` if it is damaged or the file does not have the size that it declares.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        entries = {name: _Entry(file, tuple(value["shape"]), DTYPES[value["dtype"]]) for name, value in header.items()}
        end = max((value["data_offsets"][1] for value in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file}: damaged header ({error}); copy the file again") from None
    if 8 + length + end != size:
        raise CheckpointError(f"{file}: {size} bytes, its header declares {8 + length + end}; copy it again")
    return entries
