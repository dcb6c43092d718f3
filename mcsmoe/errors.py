"""What a user can get wrong. Each message is one line: what, its value, what is allowed, and where it stands."""

from collections.abc import Iterable


class UserError(Exception):
    """Base of every mistake that the user can mend; a stage prints it as one line and exits with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ParameterError(UserError):
    """An argument whose value cannot be used, such as `groups = 9: 36 groups asked of ...`.

    `name` is what the function that refuses it calls it, `allowed` what it takes instead; other arguments named there
    stand in backticks. `where` is the file that the value was read from, None where there is no file.
    """

    def __init__(self, name: str, value: object, allowed: str, where: str | None = None) -> None:
        self.name, self.value, self.allowed, self.where = name, value, allowed, where
        super().__init__(f"{name} = {value!r}{f' in {where}' if where else ''}: {allowed}")


class ConflictError(UserError):
    """Values that are allowed one by one, but not together."""


class MemoryLimitError(ParameterError):
    """Work that needs more memory than `memory_limit` allows."""

    def __init__(self, limit: int, stage: str, needed: int, remedy: str) -> None:
        super().__init__("memory_limit", limit, f"{stage} needs {needed:,} bytes; {remedy}")


class UnknownNameError(UserError):
    """A method asked for by a name that nothing is registered under."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or not of the kind that is needed."""


class StatisticsError(CheckpointError):
    """Routing statistics or gradients that are missing, damaged, of another checkpoint, or without what is asked."""


class PlanError(CheckpointError):
    """A plan that is missing, damaged, or of another checkpoint."""


class DataError(UserError):
    """Task data that is missing or does not have the expected columns."""


class DiskFullError(UserError):
    """Not enough room to write an output whole."""
