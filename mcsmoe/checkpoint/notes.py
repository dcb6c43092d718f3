"""Intermediate results on disk: a note has its name when all of it is there."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcsmoe.checkpoint.atomic import settle
from mcsmoe.checkpoint.room import check_room

TEXT = "text"


def save_note(path: Path, tensors: Mapping[str, Tensor], text: str = "") -> None:
    """Write tensors, and a text with them. Raises `DiskFullError` before anything is written."""
    check_room(path, sum(value.nbytes for value in tensors.values()))
    unfinished = path.with_name(f".{path.name}")
    save_file(dict(tensors), unfinished, {TEXT: text})
    settle(unfinished, path)


def load_note(path: Path) -> tuple[dict[str, Tensor], str]:
    """What `save_note` wrote, in memory that the file backs."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()[TEXT]  # noqa: SIM118


def raw(value: Tensor) -> memoryview:
    """The bytes of a tensor in main memory, without a copy where it is contiguous."""
    return value.detach().contiguous().view(-1).view(torch.uint8).numpy().data
