"""Reading a data set, from a local directory or the hub, with the columns that a task needs."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mcsmoe.errors import DataError, ParameterError
from mcsmoe.fields import find_directory
from mcsmoe.params import TaskSection
from mcsmoe.tasks.task import Example, Source, Split

READERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_passages(settings: TaskSection, source: Source, split: Split) -> list[Example]:
    """Read running text: one example per row, with the text as both source and target.

    The text is in `settings.column`, by default the first of `source.columns`. Raises as `read_rows` does.
    """
    column = settings.column or source.columns[0]
    rows = _read(settings, replace(source, columns=(column,)), split)
    return [Example(row[column], row[column]) for row in rows]


def read_rows(settings: TaskSection, source: Source, split: Split) -> list[dict[str, Any]]:
    """Read all rows of a split, or the first `train_limit` rows of train.

    They come from `settings.data`, else `settings.hub`, else the task's own data set. Raises `DataError` for a
    missing file or column or an unreadable file, `ParameterError` for a data set that cannot be found or a
    `column` that the task does not read.
    """
    if settings.column is not None:
        columns = ", ".join(source.columns)
        raise ParameterError("column", settings.column, f"task {settings.name!r} reads {columns}; set it to null")
    return _read(settings, source, split)


def _read(settings: TaskSection, source: Source, split: Split) -> list[dict[str, Any]]:
    data, hub, name = settings.data, settings.hub or source.hub, source.splits[split]
    if data is not None:
        rows = _local(data, name)
    elif hub is not None:
        rows = _hub(hub, settings, source, name)
    else:
        raise ParameterError("data", None, f"task {settings.name!r} needs a local directory, or a hub id in `hub`")
    missing = sorted(set(source.columns) - set(rows.column_names))
    if missing:
        there = ", ".join(rows.column_names)
        raise DataError(f"{data or hub}, split {name!r}: column {missing[0]!r} is missing; there are {there}")
    limit = settings.train_limit if split == "train" else None
    return list(rows.select(range(min(limit or len(rows), len(rows)))))


def _local(data: str, split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    directory = find_directory(data)
    if not directory.is_dir():
        raise ParameterError("data", data, "there is no such directory")
    for ending, reader in READERS.items():
        file = directory / f"{split}{ending}"
        if file.is_file():
            try:
                return datasets.load_dataset(reader, data_files={split: str(file)}, split=split)
            except datasets.exceptions.DatasetGenerationError as error:
                raise DataError(f"{file}: cannot be read as {reader}: {error.__cause__ or error}") from None
    raise DataError(f"{directory}: no file for split {split!r}; expected {split}.jsonl, .jsonl.gz, .parquet or .csv")


def _hub(data: str, settings: TaskSection, source: Source, split: str) -> Any:
    """Read a split of a hub data set.

    The task's own revision applies to its own data set only. Its subset is the default for any other, too, since
    copies mostly keep their configurations.
    """
    import datasets

    datasets.disable_progress_bars()

    own = source.revision if data == source.hub else None
    subset, revision = settings.subset or source.subset, settings.revision or own
    try:
        return datasets.load_dataset(data, subset, split=split, revision=revision)
    except (OSError, ValueError) as error:
        what = f"no data set that the hub gives (subset {subset!r}, revision {revision!r})"
        raise ParameterError("hub", data, f"{what}: {error}") from None


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 of all sources and targets, in order, as hexadecimal digits."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.source, example.target)).encode())
    return digest.hexdigest()


def hold_out(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Return (train, selection): `count` examples drawn with `seed` move from train to selection, both in order.

    Raises `ParameterError` if no examples would be left to train on.
    """
    if count >= len(examples):
        raise ParameterError("selection", count, f"must be below the number of training examples, {len(examples)}")
    held = set(random.Random(seed).sample(range(len(examples)), count))
    train = [e for i, e in enumerate(examples) if i not in held]
    return train, [examples[i] for i in sorted(held)]
