"""Lazy reading of a checkpoint directory: headers when it is opened, tensors one at a time on request."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.checkpoint import fp8
from mcsmoe.checkpoint.config import configured_dtype, precision, read_config, read_json, with_dtype
from mcsmoe.checkpoint.header import Entry, read_header
from mcsmoe.checkpoint.paths import inside
from mcsmoe.errors import CheckpointError


def largest(value: Tensor) -> float:
    """The largest magnitude, NaN if any value is; 0 for integers and without values.

    Takes minimum and maximum, which are NaN if any value is: `isfinite` would allocate three temporary tensors.
    """
    if not value.is_floating_point() or not value.numel():
        return 0.0
    low, high = value.detach().aminmax()
    return max(-float(low), float(high))


def all_finite(value: Tensor) -> bool:
    """True if no value is NaN or infinite; integers are always finite."""
    return math.isfinite(largest(value))


LARGEST = 2.0**56
"""The largest magnitude in a matrix: the sum of some thousand squares is still a float32."""


def check_values(where: object, name: str, value: Tensor) -> None:
    """Raise `CheckpointError`, naming the tensor, for NaN or infinity, and for a matrix with values above `LARGEST`."""
    most = largest(value)
    if not math.isfinite(most):
        raise CheckpointError(f"{where}: {name} holds NaN or infinity; train or copy the model again")
    if most > LARGEST and value.ndim > 1:
        raise CheckpointError(f"{where}: {name} holds {most:.3g}, which no weight is; train or copy the model again")


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """A transformers directory with safetensors, in one file or in shards.

    Opening reads the headers only. `tensor` maps the tensor's bytes, which leave memory together with it.
    Names, dtypes and values are those of the model: weights in FP8 are restored when they are read, and a tensor that
    is neither in the `precision` of most others nor in float32 is cast to it, as transformers does. `config` is the
    dict of a config.json that says so, and `config_text` its text: that of the file, if there is nothing to change.
    Opening and reading raise `CheckpointError` with the path, the fault and a remedy.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        described = read_config(self.directory)
        self.files = _weight_files(self.directory)
        self.size_bytes = sum(file.stat().st_size for file in self.files)
        self._entries: dict[str, Entry] = {}
        for file in self.files:
            for name, entry in read_header(file).items():
                if name in self._entries:
                    raise CheckpointError(f"{self.directory}: tensor {name} is in two files; write it anew")
                self._entries[name] = entry
        self._blocks = fp8.Blocks.of(described, self.directory / "config.json")
        self._scales = fp8.scaled(self._entries, self._blocks)
        held = ((self._unscaled(name), self._entries[name].elements) for name in self.names())
        self.precision = precision(held, configured_dtype(described))
        self.config = with_dtype(described, self.precision)
        if self._blocks:
            del self.config["quantization_config"]
        self._as_described = self.config == described
        self.as_stored = all(self.dtype(name) == entry.dtype for name, entry in self._entries.items())
        """Whether no tensor is restored or cast when it is read."""

    @property
    def config_text(self) -> str:
        """The text of `config`."""
        if self._as_described:
            return (self.directory / "config.json").read_bytes().decode()
        return json.dumps(self.config, indent=2) + "\n"

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._entries.keys() - self._scales.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor, as it is read."""
        dtype = self._unscaled(name)
        same = not dtype.is_floating_point or dtype == torch.float32
        return dtype if same or self.precision is None else self.precision

    def stored_dtype(self, name: str) -> torch.dtype:
        """Dtype of one tensor on disk."""
        return self._entry(name).dtype

    def tensor(self, name: str) -> Tensor:
        """One tensor. Raises `CheckpointError` for NaN or infinity."""
        return self._read(name, None)

    def part(self, name: str, index: int | slice) -> Tensor:
        """The entry or slice `index` along the first axis of one tensor; nothing else is read. Raises as `tensor`.

        A weight in FP8 that is no stack is read whole, because its blocks lie across rows.
        """
        if name in self._scales and len(self.shape(name)) < 3:
            return self.tensor(name)[index]
        return self._read(name, index)

    def _read(self, name: str, index: int | slice | None) -> Tensor:
        value = self.stored(name, index)
        if name in self._scales:
            assert self._blocks is not None
            value = self._blocks.restore(value, self.stored(self._scales[name], index))
        file = self._entry(name).file
        check_values(file, name, value)
        cast = value.to(self.dtype(name))
        if cast is not value and not all_finite(cast):
            raise CheckpointError(f"{file}: {name} holds values too large for {cast.dtype}")
        return cast

    def stored(self, name: str, index: int | slice | None = None) -> Tensor:
        """One tensor, or an entry or slice of it, as it is in the file; NaN and infinity are not looked for."""
        entry = self._entry(name)
        try:
            value = entry.read()
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{entry.file}: cannot read {name} ({error}); copy the file again") from None
        return value if index is None else value[index]

    def _unscaled(self, name: str) -> torch.dtype:
        return fp8.RESTORED if name in self._scales else self._entry(name).dtype

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.directory}: no tensor {name}; is it a checkpoint of the kind needed?")
        return self._entries[name]


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        raise CheckpointError(f"{directory}: no {WEIGHTS}; save the model with save_pretrained first")
    files = indexed_files(directory / INDEX)
    if not files:
        raise CheckpointError(f"{directory}: none of the files that {INDEX} names is there; copy them again")
    return files


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names; none if not one of them is there, as when only small files have been fetched.

    Raises `CheckpointError` for a damaged index, a name that leads elsewhere, and a file that is missing.
    """
    values = read_json(index)
    try:
        names = sorted(set(values["weight_map"].values()))
    except (LookupError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: no weight_map; copy the file again") from None
    files = [inside(index.parent, name, index) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing and len(missing) < len(files):
        raise CheckpointError(f"{index.parent}: shard {missing[0]} is missing; copy it again")
    return [] if missing else files
