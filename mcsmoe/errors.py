"""Mistakes that users can make. Each message is one line: the argument, its value, its file, and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches

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


class DiskFullError(UserError):
    """Not enough disk space to write a whole output."""
