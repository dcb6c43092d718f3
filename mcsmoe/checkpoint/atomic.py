"""Outputs that appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
