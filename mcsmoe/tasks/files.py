"""Rows of a data file as they stand there: no type is guessed, and nothing is kept of an earlier file of that name."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from mcsmoe.errors import DataError

BATCH = 1_000
"""Rows of a Parquet file that are read at a time."""

Placed = tuple[str, dict[str, Any]]
"""A row with its place in the file, such as "line 3"."""


@dataclass(frozen=True)
class Row:
    """One row of a data set by column, and where it stands for messages, such as `data/train.csv, line 3`."""

    where: str
    values: dict[str, Any]


def read_file(file: Path) -> Iterator[Row]:
    """Yield the rows of a file whose name ends with one of `READERS`, reading on only as they are asked for.

    A field of a `.csv` is text, always: "007", "NA" and "" too. JSON and Parquet have types, and values keep them.
    Raises `DataError` for what is not of its format, or not in UTF-8, with the line or byte.
    """
    read = next(reader for ending, reader in READERS.items() if file.name.endswith(ending))
    for place, values in read(file):
        yield Row(f"{file}, {place}", values)


def _json_lines(file: Path) -> Iterator[Placed]:
    with _opened(file) as lines:
        yield from _objects(file, lines)


def _json(file: Path) -> Iterator[Placed]:
    """Rows of an array of objects, or of lines with one each."""
    with _opened(file) as opened:
        text = opened.read()
    if not text.lstrip().startswith("["):
        yield from _objects(file, StringIO(text))
        return
    for number, value in enumerate(_parsed(text, file), 1):
        yield f"row {number}", _object(value, f"{file}, row {number}")


def _objects(file: Path, lines: TextIO) -> Iterator[Placed]:
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            yield f"line {number}", _object(_parsed(line, file, number), f"{file}, line {number}")


def _parsed(text: str, file: Path, line: int = 1) -> Any:
    """The value of a JSON text that begins at `line`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        found = f"{error.msg.removesuffix(' at')} at character {error.colno}"
        raise DataError(f"{file}, line {line + error.lineno - 1}: not JSON ({found})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise DataError(f"{file}, line {line}: JSON that cannot be read ({error})") from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: {shown(value)} is no row; expected an object with columns, {{...}}")
    return value


def _csv(file: Path) -> Iterator[Placed]:
    """Rows of a table with commas, quoted as in RFC 4180; the first row names the columns, and blank lines are none."""
    csv.field_size_limit(sys.maxsize)
    with _opened(file, newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header: list[str] = []
        before = 0
        try:
            for fields in reader:
                place, before = f"line {before + 1}", reader.line_num
                if not header:
                    header = fields
                    if len(set(header)) < len(header):
                        raise DataError(f"{file}, {place}: two columns have the same name; there are {names(header)}")
                elif fields:
                    if len(fields) != len(header):
                        raise DataError(f"{file}, {place}: expected {len(header)} fields, found {len(fields)}")
                    yield place, dict(zip(header, fields, strict=True))
        except csv.Error as error:
            raise DataError(f"{file}, line {before + 1}: not CSV ({error})") from None


def _parquet(file: Path) -> Iterator[Placed]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file, page_checksum_verification=True) as table:
            for batch in table.iter_batches(BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield f"row {number}", values
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{file}: not Parquet, or damaged after row {number} ({error})") from None


@contextmanager
def _opened(file: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text of a file, unpacked if it is a `.gz`, without a byte order mark."""
    unpack: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with unpack(file, "rt", encoding="utf-8-sig", newline=newline) as opened:
            yield opened
    except UnicodeDecodeError:
        with unpack(file, "rb") as raw:
            raise DataError(f"{file}: not UTF-8 ({_first_fault(raw)}); save it in UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be unpacked ({error})") from None


def _first_fault(lines: Any) -> str:
    start = 0
    for line in lines:
        try:
            line.decode()
        except UnicodeDecodeError as error:
            return f"{error.reason} at byte {start + error.start}"
        start += len(line)
    raise AssertionError("decoded whole after all")


def shown(value: Any) -> str:
    """A value in a message, as JSON has it: `null`, `5`, `"text"`; what is no scalar by its kind alone."""
    if value is None or isinstance(value, str | int | float):
        return json.dumps(value, ensure_ascii=False)[:60]
    kinds: dict[type, str] = {list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def names(columns: Iterable[str]) -> str:
    """Columns in a message, as many as fit."""
    return ", ".join(columns)[:200]


READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
}
"""Ending of a file's name → what reads its rows."""
