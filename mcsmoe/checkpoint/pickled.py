"""Old `.bin` files: which tensors they hold, of which dtype, without their values and without running pickled code."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.checkpoint.reader import indexed_files
from mcsmoe.errors import CheckpointError

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = f"{PICKLED}.index.json"


def pickled_files(directory: Path) -> list[Path]:
    """The `.bin` files of a checkpoint; none if none is there. Raises `CheckpointError` for a damaged index."""
    if (directory / PICKLED).is_file():
        return [directory / PICKLED]
    return indexed_files(directory / PICKLED_INDEX) if (directory / PICKLED_INDEX).is_file() else []


def pickled_tensors(directory: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """File, name and empty tensor (on the meta device) of each tensor in the `.bin` files of a checkpoint.

    Raises `CheckpointError` for a file that is damaged, holds anything but tensors, or unpacks to more than its size.
    """
    for file in pickled_files(directory):
        for name, value in _read(file).items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise CheckpointError(f"{file}: {name!r} is no tensor; only tensors are taken from such a file")
            if value.numel() * value.dtype.itemsize > file.stat().st_size:
                raise CheckpointError(f"{file}: {name} has shape {list(value.shape)}, more than the file can hold")
            yield file, name, value


def _read(file: Path) -> dict[str, Tensor]:
    try:
        packed = zipfile.is_zipfile(file)
        if packed:
            with zipfile.ZipFile(file) as archive:
                if sum(each.file_size for each in archive.infolist()) > file.stat().st_size:
                    raise CheckpointError(f"{file}: unpacks to more than its size; copy the file again")
        found = torch.load(file, map_location="meta", weights_only=True, mmap=packed)
    except CheckpointError:
        raise
    except Exception:  # a pickle can make torch raise anything, often with the advice to run what it holds
        message = "it holds something else than tensors, or is damaged; convert it to safetensors where it came from"
        raise CheckpointError(f"{file}: cannot be loaded: {message}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: holds no table of tensors; copy the file again")
    return found
