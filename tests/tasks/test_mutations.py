"""A damaged data file is read for what it says, or refused in one line; nothing else happens, however it is damaged."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mcsmoe.errors import UserError
from mcsmoe.tasks.task import TASKS, Example
from tests.mutations import mutated
from tests.tasks.settings import settings

COUNT = int(os.environ.get("MUTATIONS", "60"))
"""Mutations of each file; `MUTATIONS=1000 pytest tests/tasks/test_mutations.py` is the thorough run."""
ROWS = [{"question": f"is {i} é\neven?", "passage": f"the {'long ' * i}text {i}", "label": i % 2} for i in range(20)]


def write_json(file: Path) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(ROWS)))


def write_array(file: Path) -> None:
    file.write_text(json.dumps(ROWS, indent=1))


def write_csv(file: Path) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(file: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file, row_group_size=8)


WRITERS = {"jsonl": write_json, "json": write_array, "csv": write_csv, "parquet": write_parquet}


def outcome(read: Callable[[], list[Example]]) -> list[Example] | str:
    """The examples, or the message with which they are refused."""
    try:
        return read()
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, kind):
    file = tmp_path / f"validation.{kind}"
    WRITERS[kind](file)
    whole, task = file.read_bytes(), settings(name="boolq", data=str(tmp_path))
    assert len(TASKS["boolq"].examples(task, "test")) == len(ROWS)
    refused = 0
    for seed in range(COUNT):
        file.write_bytes(mutated(whole, seed))
        found = outcome(lambda: TASKS["boolq"].examples(task, "test"))
        if isinstance(found, str):
            refused += 1
            assert found.startswith(str(tmp_path)), found
            assert "\n" not in found
            assert len(found) < len(str(file)) + 400
        else:
            assert all(each.source.encode() and each.target in ("yes", "no") for each in found)
    assert 0 < refused < COUNT
