"""Rows of a data set, from a local directory or from the hub, with the columns a task needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcsmoe.errors import DataError
from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.task import Split

READERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


@dataclass(frozen=True)
class Source:
    """Where a task's rows are: the hub's configuration name, the splits' names, and the columns needed."""

    columns: Sequence[str]
    configuration: str | None = None
    splits: Mapping[Split, str] = field(default_factory=lambda: {"train": "train", "test": "validation"})


def find_directory(path: str) -> Path | None:
    """A relative path is looked up in the working directory, then in its parents.

    Queued DVC experiments run in a directory of their own below the project: there, too, `../data` must be found.
    """
    if Path(path).is_absolute():
        return Path(path) if Path(path).is_dir() else None
    here = Path.cwd()
    return next((p / path for p in (here, *here.parents) if (p / path).is_dir()), None)


def looks_local(name: str) -> bool:
    """True for what can only be a path: a hub id has at most one slash and no leading dot or tilde."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def read_rows(settings: TaskParams, source: Source, split: Split) -> list[dict[str, Any]]:
    """All rows of a split, at most its limit. Raises `DataError` naming what is missing."""
    if settings.data is None:
        raise DataError(f"task.data = None: task {settings.name!r} needs a local directory or a hub id")
    directory, name = find_directory(settings.data), source.splits[split]
    if directory is None and looks_local(settings.data):
        raise DataError(f"task.data = {settings.data!r}: there is no such directory; give one, or a hub id")
    rows = _local(directory, name) if directory else _hub(settings, source, name)
    missing = sorted(set(source.columns) - set(rows.column_names))
    if missing:
        raise DataError(
            f"task.data = {settings.data!r}, split {name!r}: column {missing[0]!r} is missing; "
            f"there are {', '.join(rows.column_names)}"
        )
    limit = settings.train_limit if split == "train" else settings.test_limit
    return list(rows.select(range(min(limit or len(rows), len(rows)))))


def _local(directory: Path, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()

    for ending, reader in READERS.items():
        file = directory / f"{split}{ending}"
        if file.is_file():
            try:
                return datasets.load_dataset(reader, data_files={split: str(file)}, split=split)
            except datasets.exceptions.DatasetGenerationError as error:
                raise DataError(f"{file}: cannot be read as {reader}: {error.__cause__ or error}") from None
    raise DataError(f"{directory}: no file for split {split!r}; expected {split}.jsonl, .jsonl.gz, .parquet or .csv")


def _hub(settings: TaskParams, source: Source, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()

    try:
        return datasets.load_dataset(settings.data, source.configuration, split=split, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise DataError(
            f"task.data = {settings.data!r} (revision {settings.revision!r}): neither a local directory "
            f"nor a data set that the hub gives: {error}"
        ) from None
