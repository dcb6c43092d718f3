"""Data files give what stands in them, row by row, and say where something else stands."""

import csv
import gzip
import json
import os
import tracemalloc
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mcsmoe.errors import DataError
from mcsmoe.tasks.files import READERS, read_file
from mcsmoe.tasks.task import TASKS
from tests.tasks.settings import settings

TEXTS = [
    *("NA", "null", "nan", "N/A", "None", "", "007", "3.10", "1e5", "12", "True", "2020-01-02", "2020-01-02T10:00:00"),
    *("two\nlines", "two\r\nlines", 'a "quoted", word', "é 中 😀", " spaces ", "\ufeff", "x" * 200_000),
]


def write(file: Path, texts: list[str]) -> None:
    """Write rows with a text and a number in the format that the name of the file says."""
    rows: list[dict[str, Any]] = [{"text": text, "number": i} for i, text in enumerate(texts)]
    lines = "".join(json.dumps(row, ensure_ascii=row["number"] % 2 == 0) + "\n" for row in rows)
    match "".join(file.suffixes):
        case ".jsonl":
            file.write_text(lines)
        case ".jsonl.gz":
            file.write_bytes(gzip.compress(lines.encode(), mtime=0))
        case ".json":
            file.write_text(json.dumps(rows, indent=2))
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=5)
        case ".csv":
            with file.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, ["text", "number"])
                writer.writeheader()
                writer.writerows(rows)


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("texts", [TEXTS, ["007", "12"], ["2020-01-02", "1999-12-31"], ["True", "False"]], ids=len)
def test_a_text_is_that_of_the_file(tmp_path, ending, texts):
    write(tmp_path / f"a{ending}", texts)
    rows = [row.values for row in read_file(tmp_path / f"a{ending}")]
    assert [row["text"] for row in rows] == texts
    assert [int(row["number"]) for row in rows] == list(range(len(texts)))


@pytest.mark.parametrize("ending", READERS)
def test_a_file_written_anew_is_read_anew_whatever_its_time(tmp_path, ending):
    file, size = tmp_path / f"validation{ending}", set()
    for text in ("old text", "new text"):
        write(file, [text])
        os.utime(file, (1e9, 1e9))
        size.add(file.stat().st_size)
        examples = TASKS["lm"].examples(settings(name="lm", data=str(tmp_path)), "test")
        assert [each.source for each in examples] == [text]
    assert len(size) == 1 or ending == ".jsonl.gz"


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("a.csv", b'text,label\r\n"one\r\ntwo",1\r\n\r\nthree,0\r\n', ["line 2", "line 5"]),
        ("a.csv", b"\xef\xbb\xbftext,label\rone,1\rtwo,0", ["line 2", "line 3"]),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n \n{"text": "two"}', ["line 1", "line 3"]),
        ("a.json", b'{"text": "one"}\n{"text": "two"}', ["line 1", "line 2"]),
        ("a.json", b' [{"text": "one"},\n{"text": "two"}]', ["row 1", "row 2"]),
    ],
)
def test_rows_are_counted_as_an_editor_does(tmp_path, name, content, places):
    (tmp_path / name).write_bytes(content)
    rows = list(read_file(tmp_path / name))
    assert [row.where for row in rows] == [f"{tmp_path / name}, {place}" for place in places]
    assert all("text" in row.values for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2: not JSON (Expecting value at character 10)"),
        ("a.jsonl", b'{"text": "x"}\n["x"]', "line 2: a list is no row"),
        ("a.jsonl", b"[" * 100_000, "line 1: JSON that cannot be read"),
        ("a.jsonl", b'{"n": ' + b"9" * 5_000 + b"}", "line 1: JSON that cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}', "not UTF-8 (invalid continuation byte at byte 27)"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-16"), "not UTF-8 (invalid start byte at byte 0)"),
        ("a.jsonl.gz", b'{"text": "x"}', "cannot be unpacked (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}')[:-9], "cannot be unpacked"),
        ("a.json", b'[{"text": "x"},\n{"text": }]', "line 2: not JSON (Expecting value at character 10)"),
        ("a.json", b'[{"text": "x"}, 5]', "row 2: 5 is no row"),
        ("a.csv", b"text,label\na,1\nb,c,0\n", "line 3: expected 2 fields, found 3"),
        ("a.csv", b'text,label\na,1\n"b,0\nc,1\n', "line 3: not CSV (unexpected end of data)"),
        ("a.csv", b'text,label\n"a"b,1\n', "line 2: not CSV"),
        ("a.csv", b"text,text\na,b\n", "line 1: two columns have the same name"),
        ("a.csv", "text,label\nx,1\nä,1".encode("latin-1"), "not UTF-8 (invalid continuation byte at byte 15)"),
        ("a.parquet", b"PAR1", "not Parquet, or damaged after row 0"),
    ],
)
def test_what_is_not_of_its_format_is_one_line_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        list(read_file(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv"])
def test_a_large_file_is_not_read_at_once(tmp_path, ending):
    file = tmp_path / f"a{ending}"
    write(file, [f"{i} {'word ' * 40}" for i in range(5_000)])
    tracemalloc.start()
    rows = read_file(file)
    row = next(islice(rows, 4_000, None))
    assert row.where.endswith("line 4001" if "json" in ending else "line 4002")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("values", "message"),
    [([date(2020, 1, 2)], "row 1: column text holds a date, not text"), (["a", None], "row 2: column text holds null"),
     ([b"a"], "row 1: column text holds bytes, not text"), ([1.5], "row 1: column text holds 1.5, not text")],
)  # fmt: skip
def test_a_column_of_another_type_is_no_text(tmp_path, values, message):
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "validation.parquet")
    with pytest.raises(DataError, match=f"validation.parquet, {message}"):
        TASKS["lm"].examples(settings(name="lm", data=str(tmp_path)), "test")
