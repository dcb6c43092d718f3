"""Outputs whose making goes on where it was interrupted."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mcsmoe.checkpoint.output import check_room, exchange, settle, write_json
from mcsmoe.checkpoint.shards import SHARDS
from mcsmoe.checkpoint.writer import raw
from mcsmoe.errors import CheckpointError

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


FORMAT = 1
"""Number of the layout of what is kept; another number is another key."""
LIBRARIES = ("numpy", "scipy", "torch")
HEAD = 2**20
"""Bytes at the start of each file that are looked at: all of a small one, the header of a large one."""


class Staging(NamedTuple):
    """`output` becomes the output; `notes` are intermediate results that later runs with the same key find again."""

    output: Path
    notes: Path


@contextmanager
def resumable_directory(path: Path, key: Mapping[str, Any]) -> Iterator[Staging]:
    """Yield a directory `.{name}.partial` beside `path`, whose `output` takes the place of `path` on success.

    After an interruption (Ctrl-C, kill −9, a full disk) finished shards and notes stay there, for the next run
    with the same `key`: JSON values that tell everything that bytes depend on. Versions of libraries and the
    number of threads are added here. Another key starts anew. A `CheckpointError` says that what was read or
    written is wrong, and nothing stays. Neither does an interruption before the first shard or note is finished.
    Raises `CheckpointError` where another process is writing the same output.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.mkdir(parents=True, exist_ok=True)
    lock = os.open(scratch, os.O_RDONLY)
    try:
        _lock(lock, path)
        keep = False
        try:
            yield _open(scratch, dict(key) | _surroundings())
            shutil.rmtree(scratch / "old", ignore_errors=True)
            exchange(scratch / "new", path)
        except CheckpointError:
            raise
        except BaseException as error:
            keep = any((scratch / "new").glob(SHARDS)) or any((scratch / "notes").glob("*"))
            if keep and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("finished layers are kept") from None
            raise
        finally:
            if not keep:
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(directory: int, path: Path) -> None:
    """Released when the process ends, however it does."""
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(f"{path}: another process is writing it; wait for it or stop it") from None


def _open(scratch: Path, key: dict[str, Any]) -> Staging:
    staging = Staging(scratch / "new", scratch / "notes")
    text = json.dumps(key, sort_keys=True)
    stamp = scratch / "key.json"
    if not stamp.is_file() or json.dumps(json.loads(stamp.read_text()), sort_keys=True) != text:
        stamp.unlink(missing_ok=True)
        for directory in staging:
            shutil.rmtree(directory, ignore_errors=True)
        write_json(stamp, key)
    for directory in staging:
        directory.mkdir(exist_ok=True)
    return staging


def _surroundings() -> dict[str, Any]:
    versions = {name: version(name) for name in LIBRARIES}
    return {"format": FORMAT, "libraries": versions, "threads": torch.get_num_threads()}


def identity(directory: Path) -> dict[str, list[Any]]:
    """Size, time of change and a hash of the first `HEAD` bytes of each file: who it is, without reading it all."""
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns, _sha256([_head(path)])]
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


def source_code(modules: Iterable[str]) -> str:
    """A hash of the Python files of modules and whole packages by name."""
    files: list[Path] = []
    for name in modules:
        spec = find_spec(name)
        if spec is None:
            continue
        roots = [Path(root) for root in spec.submodule_search_locations or []]
        files += [file for root in roots for file in sorted(root.rglob("*.py"))] or [Path(str(spec.origin))]
    return _sha256(part for file in files for part in (file.name.encode(), file.read_bytes()))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """A hash of small tensors and their names."""
    parts = ((name.encode(), raw(value)) for name, value in tensors.items())
    return _sha256(piece for part in parts for piece in part)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _sha256(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
