"""Mistakes that users can make. Each message is one line: the argument, its value, its file, and what is allowed."""

import errno
import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

SHOWN = 200
"""Most characters of a wrong value that a message repeats."""


def nearest(name: object, known: Iterable[str]) -> str:
    """What to add to a message that refuses `name`: "; did you mean 'groups'?", or nothing if no known name is near."""
    found = get_close_matches(str(name)[:SHOWN], [*known], 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def shown(value: object) -> str:
    """A wrong value for a message: as Python writes it, cut."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


class UserError(Exception):
    """Base class of all mistakes that a user can fix; a stage prints it on one line and exits with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ParameterError(UserError):
    """An argument with an invalid value, such as `groups = 9: 36 groups asked of ...`.

    `name` is the argument's name in the function that refuses it. `allowed` says what is accepted instead, with other
    arguments in backticks. `where` is the file that the value came from; None if there is no file.
    """

    def __init__(self, name: str, value: object, allowed: str, where: str | None = None) -> None:
        self.name, self.value, self.allowed, self.where = name, value, allowed, where
        super().__init__(f"{name} = {shown(value)}{f' in {where}' if where else ''}: {allowed}")


class ConflictError(UserError):
    """Values that are valid one by one, but not together."""


class MemoryLimitError(ParameterError):
    """Work that needs more memory than `memory_limit` allows."""

    def __init__(self, limit: int, stage: str, needed: int, remedy: str) -> None:
        super().__init__("memory_limit", limit, f"{stage} needs {needed:,} bytes; {remedy}")


class UnknownNameError(UserError):
    """A name under which nothing is registered; the message lists the known names, and the nearest of them."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(f"unknown {kind} {shown(name)}; known: {', '.join(names)}{nearest(name, names)}")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of the wrong kind."""


class StatisticsError(CheckpointError):
    """Statistics or gradients that are missing, damaged, incomplete, or belong to another checkpoint."""


class PlanError(CheckpointError):
    """A plan that is missing, damaged, or belongs to another checkpoint."""


class MeasurementError(UserError):
    """A file of measurements that is missing or damaged."""


class DataError(UserError):
    """Task data that is missing or lacks expected columns."""


class FileError(UserError):
    """A file or directory that the operating system does not read or write: no permission, a name too long, ..."""


class DiskFullError(FileError):
    """Not enough disk space to write a whole output."""


def file_error(error: BaseException, path: Path | None = None, fresh: Path | None = None) -> FileError | None:
    """What the operating system refused, if that is behind `error`; None for any other error.

    It is `error` itself, what that was raised from, or what it tells in words, as libraries in Rust do:
    "I/O error: No space left on device (os error 28)". Files in `fresh` are named as they will be in `path`; without
    a name, it was `path`.
    """
    if isinstance(error, OSError) and error.errno:
        number, name, reason = error.errno, error.filename, error.strerror
    elif told := re.search(r"\(os error (\d+)\)", str(error)):
        number, name, reason = int(told[1]), None, os.strerror(int(told[1]))
    else:
        return file_error(error.__cause__, path, fresh) if error.__cause__ else None
    named = path if name is None or isinstance(name, int) else Path(os.fsdecode(name))
    if named and path and fresh and named.is_relative_to(fresh):
        named = path / named.relative_to(fresh)
    line = f"{named}: {reason}" if named else str(reason)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{line}; make room and run again")
    return FileError(line)
