"""Output directories whose interrupted write continues in the next run."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from xxhash import xxh3_128

from mcsmoe.checkpoint.output import (
    NEW,
    check_kind,
    check_room,
    lock_directory,
    refusals_of,
    restore_old,
    settle,
    write_json,
)
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, raw, write_safetensors
from mcsmoe.errors import CheckpointError
from mcsmoe.reading import parse_json

VALUES = "values"
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, KeyError)
"""What reading a damaged note raises."""


class Note(NamedTuple):
    """An intermediate result: tensors by name, and any JSON value."""

    tensors: dict[str, Tensor]
    values: Any


class Store:
    """A directory of notes, one file each, which appears whole or not at all.

        store.keep("decoder.1.matches", {"perm": perm}, {"reference": 3})
        note = store.load("decoder.1.matches")  # in this run or in a later one

    Each kind of note needs a suffix of its own, here `.matches`. `first` is called before the first note is written.
    """

    def __init__(self, directory: Path, first: Callable[[], None] = lambda: None) -> None:
        self.directory = directory
        self._first = first

    def _begin(self) -> None:
        if not self.directory.exists():
            self._first()
            self.directory.mkdir()

    def keep(self, name: str, tensors: Mapping[str, Tensor], values: Any = None) -> None:
        """Write a note, replacing an older one of this name. Tensors may be on any device and share memory.

        Raises `DiskFullError` before anything is written.
        """
        self._begin()
        path, unfinished = self.directory / name, self.directory / f".{name}"
        check_room(path, sum(value.nbytes for value in tensors.values()))
        copies = {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        text = json.dumps(values)
        with refusals_of(unfinished, path):
            save_file(copies, unfinished, {VALUES: json.dumps([text, _note_hash(copies, text)])})
            settle(unfinished, path)

    def write(self, name: str, specs: Mapping[str, TensorSpec], pieces: Iterable[Piece]) -> Written:
        """Write a note without values, one piece in memory at a time. Raises what `write_safetensors` raises.

        Returns its content hashes, by which the caller can know damage: `damaged` cannot.
        """
        self._begin()
        path, unfinished = self.directory / name, self.directory / f".{name}"
        with refusals_of(unfinished, path):
            written = write_safetensors(unfinished, specs, pieces)
            settle(unfinished, path)
        return written

    def load(self, name: str) -> Note:
        """Load an existing note; its tensors are memory-mapped from the file. Raises `CheckpointError` if damaged."""
        try:
            tensors, text, _ = self._read(name)
            return Note(tensors, parse_json(text.encode()))
        except UNREADABLE as error:
            raise CheckpointError(f"{self.directory / name} is damaged ({error})") from None

    def damaged(self) -> str | None:
        """The name of a note that cannot be read or is not as `keep` wrote it; None if all are. Reads them all."""
        for name in sorted(self.names()):
            try:
                tensors, text, expected = self._read(name)
            except UNREADABLE:
                return name
            if expected is not None and _note_hash(tensors, text) != expected:
                return name
        return None

    def _read(self, name: str) -> tuple[dict[str, Tensor], str, str | None]:
        with safe_open(self.directory / name, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            values = file.metadata().get(VALUES)
            text, expected = parse_json(values.encode()) if values else ("null", None)
        return tensors, text, expected

    def drop(self, name: str) -> None:
        """Remove a note if it exists."""
        (self.directory / name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        """Names of all notes."""
        return {path.name for path in self.directory.glob("[!.]*")}

    def __contains__(self, name: str) -> bool:
        return (self.directory / name).is_file()


def _note_hash(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = xxh3_128(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(raw(tensors[name]))
    return digest.hexdigest()


FORMAT = 2
"""Version of the layout of notes and unfinished outputs; it is part of the key."""
LIBRARIES = ("numpy", "scipy", "torch")


class Staging(NamedTuple):
    """The directory `output`, which becomes the final output, and the notes in `store` for later runs."""

    output: Path
    store: Store


@contextmanager
def resumable_directory(path: Path, key: Mapping[str, Any]) -> Iterator[Staging]:
    """Yield a `Staging` in `.{name}.partial` beside `path`; its `output` replaces `path` on success.

    After an interruption (Ctrl-C, kill -9, a full disk) output and store are kept for the next run with the same
    `key`; a run with another key, or one that finds them damaged, starts afresh. `key` holds JSON values: everything
    that the written bytes depend on. Library versions and the number of threads are added here. A value of `key` may be
    a function that makes it: see `Content`. Without an earlier run to resume, it is called beside the work, once there
    is a first note; notes do not count before the key is on the disk.
    Nothing is kept if the store is empty, or after a `CheckpointError`, which means that the data itself is wrong.
    Raises `CheckpointError` if another process is writing the same output, and `FileError` for what the operating
    system refuses.
    """
    path = Path(path)
    check_kind(path, directory=True)
    scratch = path.with_name(f".{path.name}.partial")
    with refusals_of(scratch, path), ExitStack() as stack:
        if scratch.is_file():
            scratch.unlink()
        scratch.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(scratch, path))
        stamp, complete = scratch / "key.json", dict(key) | _surroundings()
        beside, stamped = stack.enter_context(ThreadPoolExecutor(1)), list[Future[None]]()
        store = Store(scratch / "notes", lambda: stamped.append(beside.submit(_stamp, stamp, complete)))
        staging = Staging(scratch / NEW, store)
        keep = False
        try:
            restore_old(scratch, path)
            _start(staging, stamp, complete)
            with refusals_of(staging.output, path):
                yield staging
                for each in stamped:
                    each.result()
                stamp.unlink(missing_ok=True)  # the older output, which then takes this place, has not this key
                settle(staging.output, path)
        except CheckpointError:
            raise
        except BaseException as error:
            keep = bool(staging.store.names())
            if keep and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("what is finished is kept") from None
            raise
        finally:
            wait(stamped)
            if not keep:
                shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(directory: Path, output: Path) -> Iterator[None]:
    """Lock the directory in which `output` is made.

    Raises `CheckpointError` if another process has it.
    """
    lock = lock_directory(directory)
    if lock is None:
        raise CheckpointError(f"{output}: another process is writing it; wait for it or stop it")
    try:
        yield
    finally:
        os.close(lock)


def _start(staging: Staging, stamp: Path, key: dict[str, Any]) -> None:
    """Keep what an earlier run left if it is whole and had the same `key`; else empty the output and the store."""
    found = _key(stamp)
    known = found is not None and found == _made(key) and staging.output.is_dir()
    damaged = staging.store.damaged() if known else None
    if damaged:
        print(f"{stamp.parent}: {damaged} is damaged: starting anew", file=sys.stderr)
    if not known or damaged:
        _remove(stamp)  # first: after an interrupted removal the rest must not match the old key
        _remove(staging.output)
        _remove(staging.store.directory)
    staging.output.mkdir(exist_ok=True)


def _stamp(stamp: Path, key: Mapping[str, Any]) -> None:
    write_json(stamp, _made(key))


def _made(key: Mapping[str, Any]) -> Any:
    """The key as a file of JSON has it, with the values that its functions make."""
    return json.loads(json.dumps({name: value() if callable(value) else value for name, value in key.items()}))


def _key(stamp: Path) -> Any:
    """The key in the file `stamp`; None if there is none that can be read."""
    try:
        return parse_json(stamp.read_bytes())
    except (OSError, ValueError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _surroundings() -> dict[str, Any]:
    versions = {name: version(name) for name in LIBRARIES}
    return {"format": FORMAT, "libraries": versions, "threads": torch.get_num_threads()}
