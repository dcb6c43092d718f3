"""What a user can get wrong. Each message is one line: what, its value, what is allowed, and where it stands."""

from collections.abc import Iterable


class UserError(Exception):
    """Base of every mistake that the user can mend; a stage prints it as one line and exits with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ParameterError(UserError):
    """A value in a params file that cannot be used."""

    def __init__(self, name: str, value: object, allowed: str, where: str = "params.yaml") -> None:
        super().__init__(f"{name} = {value!r} in {where}: {allowed}")


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


class DataError(UserError):
    """Task data that is missing or does not have the expected columns."""


class DiskFullError(UserError):
    """Not enough room to write an output whole."""
