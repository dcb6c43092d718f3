"""Files that a checkpoint names or links: they stay in its directory."""

import re
from pathlib import Path, PurePosixPath

from mcsmoe.errors import CheckpointError, shown

HASH = re.compile("[0-9a-f]{30,64}")
"""Name of a file in a cache that stores files by content, such as the hub's: there, links are in place of files."""


def inside(directory: Path, name: object, file: Path) -> Path:
    """The file `name` of `directory`, as `file` calls it. Raises `CheckpointError` for a path to anywhere else.

    A link is followed: a cache has one in place of every file, and people link weights to save room.
    """
    if not isinstance(name, str) or "\0" in name or name in ("", "..") or PurePosixPath(name).name != name:
        raise CheckpointError(f"{file}: {shown(name)} is no name of a file beside it")
    return directory / name


def leads_out(path: Path, directory: Path) -> bool:
    """Whether a file of a checkpoint is a link to a file outside its `directory` that is in no cache."""
    target = path.resolve()
    return not target.is_relative_to(directory.resolve()) and not HASH.fullmatch(target.name)
