"""A damaged data file is read for what it says, or refused in one line.

`MUTATIONS=1000 python -m pytest tests/tasks/test_mutations.py` tries a thousand of each format.
"""

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mcsmoe.tasks.task import TASKS
from tests.mutations import COUNT, mutated, right_or_one_line
from tests.tasks.settings import settings

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


@pytest.mark.parametrize("kind", WRITERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, kind):
    file = tmp_path / f"validation.{kind}"
    WRITERS[kind](file)
    whole, task = file.read_bytes(), settings(name="boolq", data=str(tmp_path))
    assert len(TASKS["boolq"].examples(task, "test")) == len(ROWS)
    for seed in range(COUNT):
        file.write_bytes(mutated(whole, seed))
        with right_or_one_line():
            for each in TASKS["boolq"].examples(task, "test"):
                assert each.source.encode().startswith(b"boolq question: ")
                assert each.target in ("yes", "no")
