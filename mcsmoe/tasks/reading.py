"""Reading a data set, from a local directory or the hub, with the columns that a task needs."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from mcsmoe.errors import DataError, ParameterError
from mcsmoe.fields import find_directory
from mcsmoe.params import TaskSection
from mcsmoe.tasks.files import READERS, Row, names, read_file, shown
from mcsmoe.tasks.task import ID, Example, Source, Split


def read_passages(settings: TaskSection, source: Source, split: Split) -> list[Example]:
    """Read running text: one example per row, with the text as both source and target.

    The text is in `settings.column`, by default the first of `source.columns`. Raises as `read_rows` does.
    """
    column = settings.column or source.columns[0]
    rows = _read(settings, replace(source, columns=(column,)), split)
    return [Example(row.values[column], row.values[column]) for row in rows]


def read_rows(settings: TaskSection, source: Source, split: Split) -> Iterator[Row]:
    """Yield all rows of a split, or the first `train_limit` rows of train; each has all columns in their shapes.

    They come from `settings.data`, else `settings.hub`, else the task's own data set. Raises `DataError` for a
    missing file, an unreadable one or one without rows, and for a missing column or a value of another shape than
    `source.shapes` has, with its place; `ParameterError` for a data set that cannot be found or a `column` that the
    task does not read.
    """
    if settings.column is not None:
        columns = ", ".join(source.columns)
        raise ParameterError("column", settings.column, f"task {settings.name!r} reads {columns}; set it to null")
    return _read(settings, source, split)


def _read(settings: TaskSection, source: Source, split: Split) -> Iterator[Row]:
    data, hub, name = settings.data, settings.hub or source.hub, source.splits[split]
    if data is not None:
        rows = _local(data, name)
    elif hub is not None:
        rows = _hub(hub, settings, source, name)
    else:
        raise ParameterError("data", None, f"task {settings.name!r} needs a local directory, or a hub id in `hub`")
    empty = True
    for row in islice(rows, settings.train_limit if split == "train" else None):
        for column in source.columns:
            if column not in row.values:
                raise DataError(f"{row.where}: column {column!r} is missing; there are {names(row.values)}")
            check_shape(row.values[column], source.shapes.get(column, str), f"{row.where}: column {column}")
        empty = False
        yield row
    if empty:
        raise DataError(f"{data or hub}, split {name!r}: there are no rows")


def check_shape(value: Any, shape: Any, where: str) -> None:
    """Raise `DataError` for a value of another shape; see `Source.shapes`.

    A text is one that can be written in UTF-8, which half a surrogate pair, as JSON allows it, cannot.
    """
    if shape is str:
        if not isinstance(value, str):
            raise DataError(f"{where} holds {shown(value)}, not text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where} holds half a surrogate pair, which is no text") from None
    elif shape is ID:
        if type(value) not in (str, int):
            raise DataError(f"{where} holds {shown(value)}, neither text nor an integer")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise DataError(f"{where} holds {shown(value)}, not a list")
        for i, each in enumerate(value):
            check_shape(each, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise DataError(f"{where} holds {shown(value)}, not an object")
        for key, inner in shape.items():
            if key not in value:
                raise DataError(f"{where} has no {key!r}; there are {names(value)}")
            check_shape(value[key], inner, f"{where}.{key}")


def _local(data: str, split: str) -> Iterator[Row]:
    directory = find_directory(data)
    if not directory.is_dir():
        raise ParameterError("data", data, "there is no such directory")
    for ending in READERS:
        file = directory / f"{split}{ending}"
        if file.is_file():
            return read_file(file)
    raise DataError(f"{directory}: no file for split {split!r}; expected {split}.jsonl, .jsonl.gz, .parquet or .csv")


def _hub(data: str, settings: TaskSection, source: Source, split: str) -> Iterator[Row]:
    """Read a split of a hub data set.

    The task's own revision applies to its own data set only. Its subset is the default for any other, too, since
    copies mostly keep their configurations.
    """
    import datasets

    datasets.disable_progress_bars()

    own = source.revision if data == source.hub else None
    subset, revision = settings.subset or source.subset, settings.revision or own
    try:
        rows = datasets.load_dataset(data, subset, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        what = f"no data set that the hub gives (subset {subset!r}, revision {revision!r})"
        raise ParameterError("hub", data, f"{what}: {error}") from None
    return (Row(f"{data}, split {split!r}, row {number}", row) for number, row in enumerate(rows, 1))


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
