"""Outputs that appear whole or not at all, and the room on the disk that they need."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcsmoe.errors import DiskFullError


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` that takes its place, and that of an older one, on success.

    On any failure it is removed and what stood at `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        exchange(fresh, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def exchange(fresh: Path, path: Path) -> None:
    """Put the directory `fresh` in the place of `path`; what stood there becomes `old` beside `fresh`.

    Where that fails, `path` is what it was.
    """
    old = fresh.with_name("old")
    if path.exists():
        path.rename(old)
    try:
        fresh.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise


def settle(unfinished: Path, path: Path) -> None:
    """Give a file its name, once its bytes are on the disk."""
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in their order; NaN is refused with `ValueError`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def check_room(path: Path, needed: int) -> None:
    """Raise `DiskFullError` unless `needed` bytes are free where `path` is to be written."""
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskFullError(f"{path}: {needed:,} bytes needed, {free:,} free in {directory}; make room and run again")


def check_room_for(model: Any, path: Path) -> None:
    """`check_room` for all weights of a model in memory."""
    check_room(path, sum(value.nbytes for value in model.state_dict().values()))


SUFFIXES = {".json", ".txt", ".model", ".jinja"}
OWN = ("config.json", "plan.json")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the files of `source` that are neither weights, nor their index, nor the model's configuration."""
    for path in sorted(source.iterdir()):
        if path.suffix in SUFFIXES and path.name not in OWN and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)
