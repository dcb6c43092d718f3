import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mcsmoe.checkpoint import output
from mcsmoe.checkpoint.output import atomic_directory, check_output, write_files, write_json
from mcsmoe.errors import DiskFullError, FileError, file_error


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


@pytest.fixture
def two_steps(monkeypatch):
    """A file system that cannot exchange two names."""
    monkeypatch.setattr(output, "_exchanged", lambda one, other: False)


def test_two_directories_change_places_in_one_step(target, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("a moment without either"))
    with atomic_directory(target) as fresh:
        (fresh / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_failed_exchange_puts_the_older_one_back(two_steps, target, monkeypatch):
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


def test_what_a_killed_process_moved_away_comes_back(target):
    scratch = target.parent / ".merge.abcdefgh.scratch"
    scratch.mkdir()
    target.rename(scratch / "old")
    with pytest.raises(KeyError), atomic_directory(target):
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.parent.iterdir()] == ["merge"]


def test_scratch_of_the_dead_goes_and_that_of_the_living_stays(target):
    (target.parent / ".merge.abcdefgh.scratch" / "new").mkdir(parents=True)
    with atomic_directory(target) as one:
        with atomic_directory(target) as other:
            (other / "other").touch()
        (one / "one").touch()
        assert len(list(target.parent.glob(".*"))) == 1
    assert [path.name for path in target.iterdir()] == ["one"]
    assert [path.name for path in target.parent.iterdir()] == ["merge"]


def test_bytes_are_on_the_disk_before_they_count(target, monkeypatch):
    seen = []
    monkeypatch.setattr("os.fsync", lambda file: seen.append(Path(os.readlink(f"/proc/self/fd/{file}")).name))

    def exchanged(*_: Path) -> bool:
        seen.append("exchanged")
        return True

    monkeypatch.setattr(output, "_exchanged", exchanged)
    with atomic_directory(target) as fresh:
        (fresh / "weights").touch()
    assert seen == ["weights", "new", "exchanged", "artifacts"]


def test_files_appear_together_or_not_at_all(tmp_path):
    write_files({tmp_path / "a": "1", tmp_path / "b": b"1"})
    (tmp_path / "c").mkdir()
    with pytest.raises(FileError, match="c: is a directory; give the path of a file"):
        write_files({tmp_path / "a": "2", tmp_path / "c": "2"})
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("path", "directory", "message"),
    [
        ("file/a", False, "file/a: cannot be written: .*/file is no directory"),
        ("file/a/b", True, "file/a/b: cannot be written: .*/file is no directory"),
        ("file", True, "file: is no directory; give another path"),
        ("there", False, "there: is a directory; give the path of a file"),
        (".", True, ".: an output replaces what is there: give a directory of its own"),
        ("..", True, "..: an output replaces what is there"),
        ("x" * 300, False, "xx: cannot be written: File name too long"),
        (f"new/{'x' * 300}/y", True, "x/y: cannot be written: File name too long"),
        ("loop/a", False, "loop is no directory"),
    ],
)
def test_what_cannot_be_written_is_known_before(path, directory, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("there").mkdir()
    Path("loop").symlink_to("loop")
    with pytest.raises(FileError, match=message):
        check_output(Path(path), directory=directory)
    for good in ("new/a", "there/b"):
        check_output(Path(good), directory=directory)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "there"]
    assert not list(Path("there").iterdir())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_place_that_the_system_refuses(number, tmp_path, monkeypatch):
    def refuse(path, *_):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("os.mkdir", refuse)
    for work in (check_output, lambda path: write_json(path, {})):
        with pytest.raises(FileError, match=f"^{tmp_path}/out: cannot be written: {os.strerror(number)}$"):
            work(tmp_path / "out")


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (lambda fresh: OSError(errno.ENOSPC, FULL), DiskFullError, f"merge: {FULL}; make room and run again"),
        (lambda fresh: OSError(errno.ENOSPC, FULL, f"{fresh}/a"), DiskFullError, f"merge/a: {FULL}; make room"),
        (lambda fresh: SafetensorError(f"I/O error: {FULL} (os error 28)"), DiskFullError, f"merge: {FULL}; make"),
        (lambda fresh: OSError(errno.EMFILE, "Too many open files", "other"), FileError, "other: Too many open files"),
    ],
)
def test_an_error_of_the_system_names_the_output(target, error, kind, line):
    with pytest.raises(kind, match=line) as caught, atomic_directory(target) as fresh:
        raise error(fresh)
    assert "scratch" not in str(caught.value)
    assert [path.name for path in target.iterdir()] == ["old"]


def test_a_library_that_hides_the_error_of_the_system():
    hidden = ValueError("cannot read")
    hidden.__cause__ = PermissionError(errno.EACCES, "Permission denied", "data.csv")
    assert str(file_error(hidden)) == "data.csv: Permission denied"
    assert file_error(ValueError("a mistake of ours")) is None
    assert file_error(OSError("says nothing")) is None


def test_json_keeps_order_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "metrics" / "x.json", {"b": 1, "a": "é"})
    assert (tmp_path / "metrics" / "x.json").read_text() == '{\n  "b": 1,\n  "a": "é"\n}\n'


def test_json_is_whole_or_as_it_was(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1
