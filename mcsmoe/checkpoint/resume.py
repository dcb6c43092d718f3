"""Output directories whose interrupted write continues in the next run."""

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
from mcsmoe.checkpoint.writer import Piece, TensorSpec, raw, write_safetensors
from mcsmoe.errors import CheckpointError

VALUES = "values"


class Note(NamedTuple):
    """An intermediate result: tensors by name, and any JSON value."""

    tensors: dict[str, Tensor]
    values: Any


class Store:
    """A directory of notes, one file each, which appears whole or not at all.

        store.keep("decoder.1.matches", {"perm": perm}, {"reference": 3})
        note = store.load("decoder.1.matches")  # in this run or in a later one

    Each kind of note needs a suffix of its own, here `.matches`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(self, name: str, tensors: Mapping[str, Tensor], values: Any = None) -> None:
        """Write a note, replacing an older one of this name. Tensors may be on any device and share memory.

        Raises `DiskFullError` before anything is written.
        """
        self.directory.mkdir(exist_ok=True)
        path, unfinished = self.directory / name, self.directory / f".{name}"
        check_room(path, sum(value.nbytes for value in tensors.values()))
        copies = {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        save_file(copies, unfinished, {VALUES: json.dumps(values)})
        settle(unfinished, path)

    def write(self, name: str, specs: Mapping[str, TensorSpec], pieces: Iterable[Piece]) -> None:
        """Write a note without values, one piece in memory at a time. Raises what `write_safetensors` raises."""
        self.directory.mkdir(exist_ok=True)
        unfinished = self.directory / f".{name}"
        write_safetensors(unfinished, specs, pieces)
        settle(unfinished, self.directory / name)

    def load(self, name: str) -> Note:
        """Load an existing note; its tensors are memory-mapped from the file."""
        with safe_open(self.directory / name, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return Note(tensors, json.loads(file.metadata().get(VALUES, "null")))

    def drop(self, name: str) -> None:
        """Remove a note if it exists."""
        (self.directory / name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Names of all notes."""
        return {path.name for path in self.directory.glob("[!.]*")}

    def __contains__(self, name: str) -> bool:
        return (self.directory / name).is_file()


FORMAT = 1
"""Version of the layout of notes and unfinished outputs; it is part of the key."""
LIBRARIES = ("numpy", "scipy", "torch")
OURS = ("mcsmoe", "stages")
HEAD = 2**20
"""How many bytes at the start of each file `identity` hashes: all of a small file, the header of a large one."""


class Staging(NamedTuple):
    """The directory `output`, which becomes the final output, and the notes in `store` for later runs."""

    output: Path
    store: Store


@contextmanager
def resumable_directory(path: Path, key: Mapping[str, Any]) -> Iterator[Staging]:
    """Yield a `Staging` in `.{name}.partial` beside `path`; its `output` replaces `path` on success.

    After an interruption (Ctrl-C, kill -9, a full disk) output and store are kept for the next run with the same
    `key`; a run with another key starts afresh. `key` holds JSON values: everything that the written bytes depend on.
    Library versions and the number of threads are added here.
    Nothing is kept if the store is empty, or after a `CheckpointError`, which means that the data itself is wrong.
    Raises `CheckpointError` if another process is writing the same output.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.mkdir(parents=True, exist_ok=True)
    with locked(scratch, path):
        staging = Staging(scratch / "new", Store(scratch / "notes"))
        keep = False
        try:
            _start(staging, scratch / "key.json", dict(key) | _surroundings())
            yield staging
            shutil.rmtree(scratch / "old", ignore_errors=True)
            exchange(staging.output, path)
        except CheckpointError:
            raise
        except BaseException as error:
            keep = bool(staging.store.names())
            if keep and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("finished layers are kept") from None
            raise
        finally:
            if not keep:
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(directory: Path, output: Path) -> Iterator[None]:
    """Lock the directory in which `output` is made; the system releases the lock when the process ends, even if killed.

    Raises `CheckpointError` if another process has it.
    """
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{output}: another process is writing it; wait for it or stop it") from None
        yield
    finally:
        os.close(lock)


def _start(staging: Staging, stamp: Path, key: dict[str, Any]) -> None:
    """Keep what an earlier run left if it had the same `key`, else start with an empty output and store."""
    if not stamp.is_file() or json.loads(stamp.read_text()) != json.loads(json.dumps(key)):
        stamp.unlink(missing_ok=True)  # first: after an interrupted removal the rest must not match the old key
        shutil.rmtree(staging.output, ignore_errors=True)
        shutil.rmtree(staging.store.directory, ignore_errors=True)
        write_json(stamp, key)
    staging.output.mkdir(exist_ok=True)


def _surroundings() -> dict[str, Any]:
    versions = {name: version(name) for name in LIBRARIES}
    return {"format": FORMAT, "libraries": versions, "threads": torch.get_num_threads()}


def identity(directory: Path) -> dict[str, list[Any]]:
    """File name → [size, time of change, hash of its first `HEAD` bytes]: identifies files without reading them whole.

    Part of the key of `resumable_directory`.
    """
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns, _sha256([_head(path)])]
        for path in sorted(directory.iterdir())
        if path.is_file()
    }


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
