"""Outputs that appear whole or not at all, and checks that they can be written: the place, and free disk space.

An output is made in a scratch directory beside its place, and takes this place in one step once it is on the disk:

    .finetune.k3x9a2_b.scratch/new     while it is made
    finetune                           the older one until then, the new one from then on
"""

import ctypes
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from mcsmoe.errors import DiskFullError, FileError, UserError, file_error

SCRATCH = ".scratch"
NEW, OLD = "new", "old"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield the path of a file or directory for the caller to make; it becomes `path`, replacing an older one there.

    On failure `path` stays as it was. What killed processes have left of earlier attempts is removed. Raises
    `FileError` for what the operating system refuses.
    """
    path = Path(path)
    with scratch_beside(path) as scratch, refusals_of(scratch / NEW, path):
        yield scratch / NEW
        settle(scratch / NEW, path)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path`; see `atomic`."""
    check_kind(path, directory=True)
    with atomic(path) as fresh:
        fresh.mkdir()
        yield fresh


def write_files(files: Mapping[Path, str | bytes]) -> None:
    """Write small files, text as UTF-8. If one cannot be written, all stay as they were; see `atomic`."""
    with ExitStack() as stack:
        for path, content in files.items():
            check_kind(path, directory=False)
            content = content.encode() if isinstance(content, str) else content
            stack.enter_context(atomic(path)).write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as `json_text`; the file appears whole or not at all. Raises `ValueError` as that does."""
    write_files({Path(path): json_text(value)})


def json_text(value: Any) -> str:
    """`value` as indented JSON, keys in insertion order. Raises `ValueError` for NaN or infinity."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def check_output(path: Path, *, directory: bool = False) -> None:
    """Raise `FileError` unless a file, or a directory, can be written at `path`; leave nothing there."""
    check_kind(path, directory=directory)
    place = Path(path).absolute()
    above = next(parent for parent in place.parents if os.path.isdir(parent))
    try:
        # The names may be too long, the disk read-only, the rights those of a foreign server: trying is the only test.
        with tempfile.TemporaryDirectory(prefix=".", suffix=SCRATCH, dir=above) as trial:
            Path(trial, place.relative_to(above)).mkdir(parents=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror}") from None


def check_kind(path: Path, *, directory: bool) -> None:
    """Raise `FileError` if `path` can be no output because of what is there, or in the place of a directory above."""
    place = Path(path).absolute()
    blocked = next((above for above in place.parents if os.path.lexists(above) and not os.path.isdir(above)), None)
    if blocked is not None:
        raise FileError(f"{path}: cannot be written: {blocked} is no directory")
    if directory and Path(os.path.normpath(place)) in (Path.cwd(), *Path.cwd().parents):
        raise FileError(f"{path}: an output replaces what is there: give a directory of its own")
    if os.path.isdir(place) and not directory:
        raise FileError(f"{path}: is a directory; give the path of a file")
    if directory and os.path.lexists(place) and not os.path.isdir(place):
        raise FileError(f"{path}: is no directory; give another path")


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """An empty directory beside `path`, removed at the end; those that killed processes have left are removed first."""
    with refusals_of(path.parent, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:40]}."  # names have at most 255 bytes
    for leftover in path.parent.glob(f"{glob.escape(prefix)}{'?' * 8}{SCRATCH}"):
        lock = lock_directory(leftover)
        if lock is not None:
            restore_old(leftover, path)
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)
    lock = None
    while lock is None:  # another process may find it and remove it before it is locked
        try:
            scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=SCRATCH, dir=path.parent))
        except OSError as error:
            raise FileError(f"{path}: cannot be written: {error.strerror}") from None
        lock = lock_directory(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def lock_directory(directory: Path) -> int | None:
    """Lock a directory until the file descriptor that is returned is closed; None if another has it, or it is gone.

    The system releases the lock when the process ends, even if it is killed.
    """
    lock = None
    with suppress(FileNotFoundError, NotADirectoryError, BlockingIOError):
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(directory)):
            return lock
    if lock is not None:
        os.close(lock)
    return None


@contextmanager
def refusals_of(fresh: Path, path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a `FileError` that names `path`, or the file in it, instead of `fresh`.

    Libraries do not always say which file it was; then it is taken to be `path`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = file_error(error, path, fresh)
        if told is None:
            raise
        raise told from error


def settle(fresh: Path, path: Path) -> None:
    """Make the file or directory `fresh` the output `path`, once all its bytes are on the disk.

    A directory that was at `path` is afterwards at `fresh`, or beside it as `old`; a file is gone. There is no moment
    without either, where the file system can exchange two names in one step; otherwise, `restore_old` brings back the
    older directory after a kill between two steps.
    """
    for directory, _, names in os.walk(fresh):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))
    if not fresh.is_dir():
        sync(fresh)
        fresh.replace(path)
    elif not os.path.lexists(path):
        fresh.rename(path)
    elif not _exchanged(fresh, path):
        old = fresh.with_name(OLD)
        path.rename(old)
        try:
            fresh.rename(path)
        except BaseException:
            old.rename(path)
            raise
    sync(path.parent)


def restore_old(scratch: Path, path: Path) -> None:
    """Bring back the older `path` if a process was killed when it had moved that into `scratch`, but no newer one out.

    The scratch directory must be locked.
    """
    if (scratch / OLD).is_dir() and not os.path.lexists(path):
        (scratch / OLD).rename(path)


def sync(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a directory, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


AT_FDCWD, RENAME_EXCHANGE = -100, 2


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is None:
        return False
    return bool(exchange(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def check_room(path: Path, needed: int) -> None:
    """Raise `DiskFullError` unless `needed` bytes are free on the disk of `path`, which need not exist yet."""
    directory = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskFullError(f"{path}: {needed:,} bytes needed, {free:,} free in {directory}; make room and run again")


def check_room_for(model: Any, path: Path) -> None:
    """Raise `DiskFullError` unless there is room at `path` for all weights of a model in memory."""
    check_room(path, sum(value.nbytes for value in model.state_dict().values()))
