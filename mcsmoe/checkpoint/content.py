"""What outputs depend on, as hashes in their keys: the content of directories, tensors, and the code."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from xxhash import xxh3_128, xxh3_128_hexdigest

from mcsmoe.checkpoint.writer import raw

OURS = ("mcsmoe", "stages")
LARGE = 2**26
"""Files of so many bytes are hashed once in a process."""
CHUNK = 2**20
"""Bytes of a large file that are hashed at a time: they are still in the processor's cache."""


def identity(directory: Path) -> dict[str, str]:
    """File name → hash of its content, whatever its times say. Part of the key of `resumable_directory`."""
    return {path.name: _content(path) for path in sorted(directory.iterdir()) if path.is_file()}


class Content:
    """The `identity` of a directory as it was when this was made, hashed only when it is called.

    The files may be read in between. If one has changed since, the result is empty, which is the identity of no
    checkpoint: what was made of them is then not resumed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._state = directory, _state_of(directory)

    def __call__(self) -> dict[str, str]:
        """File name → hash of its content."""
        found = identity(self._directory)
        return found if _state_of(self._directory) == self._state else {}


def _state_of(directory: Path) -> dict[str, tuple[int, ...]]:
    return {path.name: _state(path) for path in sorted(directory.iterdir()) if path.is_file()}


def _state(path: Path) -> tuple[int, ...]:
    """What differs once a file was changed: nobody can set back the time of its last change."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


def _content(path: Path) -> str:
    """Hash of a file; a large one is read once in a process unless it was changed.

    None of `LARGE` bytes is written within a tick of the clock.
    """
    if path.stat().st_size < LARGE:
        return xxh3_128_hexdigest(path.read_bytes())
    return _large_content(path, *_state(path))


@cache
def _large_content(path: Path, *_: int) -> str:
    digest, chunk = xxh3_128(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while found := file.readinto(chunk):
            digest.update(chunk[:found])
    return digest.hexdigest()


def source_code(plugins: Iterable[str] = ()) -> str:
    """A hash of all Python files of this project and of the plugins, which are names of modules or packages."""
    return code_hash([*OURS, *plugins])


def code_hash(modules: Iterable[str]) -> str:
    """A hash of all Python files of the named modules and packages; names that are not found are ignored."""
    files: list[Path] = []
    for name in modules:
        spec = find_spec(name)
        if spec is None:
            continue
        roots = [Path(root) for root in spec.submodule_search_locations or []]
        files += [file for root in roots for file in sorted(root.rglob("*.py"))] or [Path(str(spec.origin))]
    return sha256(part for file in files for part in (file.name.encode(), file.read_bytes()))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """A hash of small tensors and their names."""
    parts = ((name.encode(), raw(value)) for name, value in tensors.items())
    return sha256(piece for part in parts for piece in part)


def sha256(parts: Iterable[Any]) -> str:
    """The SHA-256 of bytes, or arrays of bytes, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
