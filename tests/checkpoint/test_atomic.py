import json
from pathlib import Path

import pytest

from mcsmoe.checkpoint.output import atomic_directory, write_json


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "artifacts" / "merge"
    path.mkdir(parents=True)
    (path / "old").write_text("old")
    return path


def test_a_new_directory_replaces_the_older_one(target):
    with atomic_directory(target) as fresh:
        (fresh / "new").write_text("new")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in target.parent.iterdir()] == ["merge"]


def test_parents_are_made(tmp_path):
    with atomic_directory(tmp_path / "a" / "b") as fresh:
        (fresh / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(target, failure):
    def write():
        with atomic_directory(target) as fresh:
            (fresh / "new").write_text("new")
            raise failure

    with pytest.raises(failure):
        write()
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.parent.iterdir()] == ["merge"]


def test_a_failed_exchange_puts_the_older_one_back(target, monkeypatch):
    rename = Path.rename

    def fail(self, other):
        if self.name == "new":
            raise OSError("no")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), atomic_directory(target):
        pass
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.parent.iterdir()] == ["merge"]


def test_json_keeps_order_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "metrics" / "x.json", {"b": 1, "a": "é"})
    assert (tmp_path / "metrics" / "x.json").read_text() == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_json_is_whole_or_as_it_was(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1
