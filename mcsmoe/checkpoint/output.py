"""Outputs that appear whole or not at all, and checks for free disk space."""

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
    """Yield an empty directory that becomes `path` on success, replacing any older directory there.

    On failure it is removed, and `path` stays as it was.
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
    """Rename the directory `fresh` to `path`; an older directory there becomes `old`, beside where `fresh` was.

    On failure `path` stays as it was.
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
    """Flush the file `unfinished` to disk, then rename it to `path`."""
    with unfinished.open("rb+") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in insertion order; the file appears whole or not at all.

    Raises `ValueError` for NaN or infinity.
    """
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
    """Raise `DiskFullError` unless `needed` bytes are free on the disk of `path`, which need not exist yet."""
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskFullError(f"{path}: {needed:,} bytes needed, {free:,} free in {directory}; make room and run again")


def check_room_for(model: Any, path: Path) -> None:
    """Raise `DiskFullError` unless there is room at `path` for all weights of a model in memory."""
    check_room(path, sum(value.nbytes for value in model.state_dict().values()))
