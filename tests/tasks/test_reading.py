import gzip
import json
from datetime import datetime
from pathlib import Path

import pytest

from mcsmoe.errors import DataError, UserError
from mcsmoe.fields import find_directory
from mcsmoe.tasks.task import CONVERTED, TASKS
from tests.tasks.settings import settings

ROWS = [{"sentence": "good ", "label": 1}, {"sentence": "bad", "label": 0}]


@pytest.fixture
def sst2(tmp_path):
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "validation.jsonl").write_text(json.dumps(ROWS[0]))
    return settings(name="sst2", data=str(tmp_path))


def test_a_local_directory_is_read_compressed_or_not(sst2):
    train, test = (TASKS["sst2"].examples(sst2, split) for split in ("train", "test"))
    assert [e.target for e in train] == ["positive", "negative"]
    assert [e.source for e in test] == ["sst2 sentence: good"]


def test_a_limit_takes_the_first_rows(sst2):
    assert len(TASKS["sst2"].examples(sst2.model_copy(update={"train_limit": 1}), "train")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "../no/such/place"}, "no such directory"),
        ({"name": "lm", "data": None}, "needs a local directory, or a hub id"),
        ({"name": "lm", "column": "body"}, "column 'body' is missing; there are sentence, label"),
        ({"column": "sentence"}, "^column = 'sentence': task 'sst2' reads sentence, label"),
        ({"name": "copa"}, r"gz, line 1: column 'premise' is missing; there are sentence, label"),
    ],
)
def test_missing_data_is_one_clear_line(sst2, change, message):
    changed = sst2.model_copy(update=change)
    with pytest.raises(UserError, match=message) as error:
        TASKS[changed.name].examples(changed, "train")
    assert "\n" not in str(error.value)


def test_a_missing_split_names_the_files_looked_for(sst2, tmp_path):
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file for split 'validation'; expected validation\.jsonl"):
        TASKS["sst2"].examples(sst2, "test")


def test_broken_rows_name_the_file(sst2, tmp_path):
    (tmp_path / "validation.jsonl").write_text('{"sentence": ')
    with pytest.raises(DataError, match=r"validation\.jsonl, line 1: not JSON \(Expecting value at character 14\)"):
        TASKS["sst2"].examples(sst2, "test")


def test_a_relative_directory_is_found_from_below(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    below = tmp_path / "project/.dvc/tmp/exps/run"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_directory("../data").resolve() == tmp_path / "data"
    assert find_directory("../nothing-of-that-name") == Path("../nothing-of-that-name")


GLUE = {"path": "nyu-mll/glue", "name": "sst2", "split": "validation", "revision": None}
CLUE = {"path": "aps/super_glue", "name": "copa", "split": "validation", "revision": CONVERTED}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": "sst2"}, GLUE),
        ({"name": "sst2", "hub": "nyu-mll/glue", "revision": "abc"}, GLUE | {"revision": "abc"}),
        ({"name": "sst2", "hub": "mine/glue", "subset": "x"}, GLUE | {"path": "mine/glue", "name": "x"}),
        ({"name": "copa"}, CLUE),
        ({"name": "copa", "hub": "mine/copa"}, CLUE | {"path": "mine/copa", "revision": None}),
        ({"name": "mnli_mismatched"}, GLUE | {"name": "mnli", "split": "validation_mismatched"}),
        ({"name": "lm", "hub": "mine/text", "subset": "x"}, GLUE | {"path": "mine/text", "name": "x"}),
    ],
)
def test_the_hub_is_asked_with_configuration_and_revision(monkeypatch, change, expected):
    import datasets

    asked: dict[str, str] = {}

    def load_dataset(path, name, *, split, revision):
        asked.update(path=path, name=name, split=split, revision=revision)
        return datasets.Dataset.from_dict({column: [] for column in columns})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = TASKS[change["name"]].source
    assert source is not None
    columns = source.columns
    with pytest.raises(DataError, match="there are no rows"):
        TASKS[change["name"]].examples(settings(**change), "test")
    assert asked == expected


@pytest.mark.parametrize(("text", "shown"), [(None, "null"), (7, "7"), (datetime(2020, 1, 2), "a datetime")])
def test_a_row_of_the_hub_without_text_is_refused(monkeypatch, text, shown):
    import datasets

    rows = datasets.Dataset.from_dict({"text": [text, text]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    with pytest.raises(DataError, match=f"^mine/text, split 'train', row 1: column text holds {shown}, not text"):
        TASKS["lm"].examples(settings(name="lm", hub="mine/text"), "train")


def test_running_text_may_stand_in_another_column(sst2):
    named = sst2.model_copy(update={"name": "lm", "column": "sentence"})
    assert [e.target for e in TASKS["lm"].examples(named, "train")] == ["good ", "bad"]


def test_a_hidden_label_is_refused(tmp_path):
    (tmp_path / "validation.jsonl").write_text(json.dumps({"sentence": "good", "label": -1}))
    with pytest.raises(DataError, match="label -1 has no answer"):
        TASKS["sst2"].examples(settings(name="sst2", data=str(tmp_path)), "test")
