"""Is there room on the disk? Asked before the work whose result needs it."""

import shutil
from pathlib import Path
from typing import Any

from mcsmoe.errors import DiskFullError


def check_room(path: Path, needed: int) -> None:
    """Raise `DiskFullError` unless `needed` bytes are free where `path` is to be written."""
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskFullError(f"{path}: {needed:,} bytes needed, {free:,} free in {directory}; make room and run again")


def check_room_for(model: Any, path: Path) -> None:
    """`check_room` for all weights of a model in memory."""
    check_room(path, sum(value.nbytes for value in model.state_dict().values()))
