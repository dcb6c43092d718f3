"""The directory beside the output in which a run keeps what it has finished, so that the next run goes on there."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mcsmoe.checkpoint.output import settle, write_json
from mcsmoe.checkpoint.resume import Store, locked
from mcsmoe.errors import CheckpointError
from mcsmoe.reading import parse_as


@dataclass(frozen=True)
class Finished:
    """A phase that an earlier run has finished: its key, a hash of all that its result depends on, and file → bytes."""

    key: str
    files: dict[str, int]


class Workspace:
    """The phases that earlier runs have finished.

    `path` is `.{name}.shrink` beside the output. Phases come in order: one that runs anew makes those after it void.
    A phase whose files are no longer there, or whose notes are damaged, is not finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes = Store(path / "notes")
        self._record = path / "finished.json"
        self._finished = {} if self.notes.damaged() else _recorded(self._record)

    def finished(self, phase: str, key: str) -> bool:
        """Whether an earlier run has finished the phase with this key."""
        found = self._finished.get(phase)
        return found is not None and found.key == key and found.files.items() <= self._sizes().items()

    def run(self, phase: str, key: str, work: Callable[[], object]) -> None:
        """Do the work of a phase, and record it as finished."""
        names = list(self._finished)
        if phase in names:
            self._finished = {name: self._finished[name] for name in names[: names.index(phase)]}
            self._write()
        before = self._files()
        work()
        made = {name: file[0] for name, file in self._files().items() if before.get(name) != file}
        self._finished[phase] = Finished(key, made)
        self._write()

    def _files(self) -> dict[str, tuple[int, int, int]]:
        """File → its bytes, its inode, and when it was written."""
        paths = (path for path in self.path.rglob("*") if path.is_file() and path != self._record)
        found = ((str(path.relative_to(self.path)), path.stat()) for path in paths)
        return {name: (stat.st_size, stat.st_ino, stat.st_mtime_ns) for name, stat in found}

    def _sizes(self) -> dict[str, int]:
        return {name: size for name, (size, *_) in self._files().items()}

    def _write(self) -> None:
        write_json(self._record, {name: asdict(phase) for name, phase in self._finished.items()})


def _recorded(record: Path) -> dict[str, Finished]:
    """The phases that earlier runs have finished; none if there is no record, or a damaged one."""
    try:
        found: dict[str, Finished] = parse_as(dict[str, Finished], record.read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def workspace_path(output: Path) -> Path:
    """Where the workspace of `output` is."""
    return output.with_name(f".{output.name}.shrink")


def held_bytes(output: Path) -> int:
    """Bytes of disk that the workspace of `output` has taken already."""
    return sum(path.stat().st_size for path in workspace_path(output).rglob("*") if path.is_file())


@contextmanager
def workspace(output: Path) -> Iterator[Workspace]:
    """The workspace of `output`; it stays until `close`, whatever happens.

    Raises `CheckpointError` if another process is at work there.
    """
    path = workspace_path(output)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path, output):
        yield Workspace(path)


def close(space: Workspace, result: Path, output: Path) -> None:
    """Move the directory `result` out of the workspace to `output`, and remove the workspace.

    Raises `CheckpointError` if something has appeared there meanwhile; the workspace then stays.
    """
    if output.exists():
        raise CheckpointError(f"{output}: appeared while the result was made; move it away and run again")
    settle(result, output)
    shutil.rmtree(space.path)
