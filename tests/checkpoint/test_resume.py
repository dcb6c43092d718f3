"""Weights in shards, and directories whose making goes on where it was interrupted."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mcsmoe.checkpoint import resume, shards
from mcsmoe.checkpoint.content import Content
from mcsmoe.checkpoint.output import settle
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.checkpoint.resume import Store, resumable_directory
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written
from mcsmoe.errors import CheckpointError, DiskFullError
from tests.mutations import COUNT, mutated, right_or_one_line

SPEC = TensorSpec(torch.float32, (100,))
NAMES = ("a", "b", "c")
OTHERS = dict.fromkeys(("e", "d", "f"), SPEC)


class Source:
    """Three layers of one tensor each, and others; counts what is asked of it, and fails at one of them."""

    def __init__(self, broken: str = "", error: type[BaseException] = KeyboardInterrupt) -> None:
        self.asked: list[str] = []
        self.broken, self.error = broken, error

    def read(self, name: str) -> torch.Tensor:
        self.asked.append(name)
        if name == self.broken:
            raise self.error(name)
        return torch.full((100,), float(ord(name)))

    def pieces(self, name: str) -> Iterator[Piece]:
        yield Piece(name, None, self.read(name))

    def write(self, directory: Path, store: Store) -> Written:
        parts = [Part(name, {name: SPEC}, lambda name=name: self.pieces(name)) for name in NAMES]  # type: ignore[misc]
        (directory / "config.json").write_text("{}")
        return write_parts(directory, [*parts, *other_parts(OTHERS, self.read)], "copy", store)


def write(path: Path, source: Source, key: str = "key") -> list[str]:
    with resumable_directory(path, {"key": key}) as staging:
        source.write(*staging)
    return source.asked


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of two tensors."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 800)


def test_one_file_up_to_the_limit(tmp_path: Path):
    write(tmp_path / "out", Source())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {WEIGHTS, "config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_shard_for_each_layer_and_as_many_as_others_need(small: None, tmp_path: Path):
    write(tmp_path / "out", Source())
    found = Checkpoint(tmp_path / "out")
    assert [file.name for file in found.files] == [f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)]
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == 6 * 400
    assert list(index["weight_map"]) == found.names() == list("abcdef")
    assert all(found.tensor(name).eq(ord(name)).all() for name in "abcdef")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, DiskFullError])
def test_an_interrupted_write_goes_on_and_gives_the_same_bytes(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: type[BaseException]
):
    write(tmp_path / "whole", Source())
    with pytest.raises(error):
        write(tmp_path / "out", Source("c", error))
    assert not (tmp_path / "out").exists()
    assert write(tmp_path / "out", Source()) == list("cdef")
    written = capsys.readouterr()
    assert written.out == "resuming at c: 2 of 5 shards were written before\n"
    lines = [line.split(",")[1] for line in written.err.splitlines()]
    assert lines == [
        *(" bytes: 0.00/2.40k (0 %)", " bytes: 2.40k/2.40k (100 %)"),
        *(" bytes: 0.00/2.40k (0 %)", " bytes: 800/2.40k (33 %)"),
        *(" bytes: 0.00/1.60k (0 %)", " bytes: 1.60k/1.60k (100 %)"),
    ]
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_killed_in_the_middle_of_a_shard(small: None, tmp_path: Path):
    program = (
        "import os, sys; from pathlib import Path; from mcsmoe.checkpoint import shards; shards.SHARD_BYTES = 800\n"
        "from tests.checkpoint.test_resume import Source, write\n"
        "class Killed(Source):\n"
        "    def read(self, name):\n"
        "        return super().read(name) if name != 'e' else os.kill(os.getpid(), 9)\n"
        "write(Path(sys.argv[1]), Killed())"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], cwd=Path(__file__).parents[2])
    assert run.returncode == -9
    assert any((tmp_path / ".out.partial" / "new").glob(".model-00004*"))  # holds d, but not e
    write(tmp_path / "whole", Source())
    assert write(tmp_path / "out", Source()) == list("def")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("other", ["key", "threads", "damaged shard"])
def test_what_was_written_from_something_else_is_not_used(small: None, tmp_path: Path, other: str):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Source("c"))
    threads = torch.get_num_threads()
    try:
        if other == "threads":
            torch.set_num_threads(threads + 1)
        elif other == "damaged shard":  # a check that fails afterwards takes everything with it
            with pytest.raises(CheckpointError), resumable_directory(tmp_path / "out", {"key": "key"}):
                raise CheckpointError("not equal")
            assert list(tmp_path.iterdir()) == []
        asked = write(tmp_path / "out", Source(), "another" if other == "key" else "key")
    finally:
        torch.set_num_threads(threads)
    assert asked == list("abcdef")


def test_a_finished_shard_that_changed_is_written_again(small: None, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Source("c"))
    (shard,) = (tmp_path / ".out.partial" / "new").glob("model-00002*")
    content = shard.read_bytes()
    shard.write_bytes(content[:-4] + bytes(4))
    assert write(tmp_path / "out", Source()) == list("bcdef")
    assert Checkpoint(tmp_path / "out").tensor("b").eq(ord("b")).all()


@pytest.mark.parametrize("damage", ["note", "cut note", "key", "no output", "file"])
def test_damaged_leftovers_are_no_obstacle(small: None, tmp_path: Path, damage: str):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Source("c"))
    partial = tmp_path / ".out.partial"
    note = next((partial / "notes").iterdir())
    if "note" in damage:
        content = note.read_bytes()
        note.write_bytes(content[:20] if "cut" in damage else content.replace(b'"a', b'"b').replace(b"0", b"1"))
    elif damage == "key":
        (partial / "key.json").write_text("{")
    else:
        shutil.rmtree(partial / "new" if damage == "no output" else partial)
        if damage == "file":
            partial.touch()
    assert write(tmp_path / "out", Source()) == list("abcdef")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_between_the_exchange_and_the_removal(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The older output, which is then where the newer one was, is not taken for an unfinished one."""
    write(tmp_path / "out", Source(), "older")

    def killed(fresh: Path, path: Path) -> None:
        settle(fresh, path)
        if path.name == "out":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", Source())
    assert (tmp_path / ".out.partial" / "new").is_dir()
    assert write(tmp_path / "out", Source()) == list("abcdef")


def test_nothing_stays_where_nothing_is_finished(small: None, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", Source("a"))
    assert list(tmp_path.iterdir()) == []


def test_notes_stay_until_the_output_is_there(tmp_path: Path):
    def make(last: bool) -> None:
        with resumable_directory(tmp_path / "out", {}) as staging:
            assert ("note" in staging.store) == last
            staging.store.keep("note", {})
            if not last:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="what is finished is kept"):
        make(last=False)
    assert not (tmp_path / "out").exists()
    make(last=True)
    assert list((tmp_path / "out").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_note_comes_back_as_it_was(tmp_path: Path):
    base = torch.arange(6.0).view(2, 3)
    tensors = {"whole": base, "turned": base.T, "half": base[0].bfloat16(), "scalar": torch.tensor(3)}
    values = {"layers": ["encoder.1"], "share": 0.1, "none": None, "ü": "ß"}
    store = Store(tmp_path / "notes")
    assert store.names() == set()
    store.keep("decoder.1.note", tensors, values)
    store.keep("values", {}, values)
    found = Store(tmp_path / "notes").load("decoder.1.note")
    assert found.values == store.load("values").values == values
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors.items())
    assert store.names() == {"decoder.1.note", "values"}
    store.drop("values")
    assert "values" not in store


def test_a_note_that_is_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store(tmp_path)
    store.keep("note", {"a": torch.zeros(3)}, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    for name in ("note", "another"):
        with pytest.raises(KeyboardInterrupt):
            store.keep(name, {"a": torch.ones(3)}, "new")
    assert store.names() == {"note"}
    assert "another" not in store
    assert store.load("note").values == "old"


def test_two_processes_do_not_write_the_same(tmp_path: Path):
    with resumable_directory(tmp_path / "out", {}) as staging:
        (staging.output / "file").touch()
        with pytest.raises(CheckpointError, match="another process"), resumable_directory(tmp_path / "out", {}):
            pass
    assert (tmp_path / "out" / "file").exists()


def test_a_key_is_made_only_for_notes(small: None, tmp_path: Path):
    def made() -> str:
        raise AssertionError("nothing is to be resumed")

    with resumable_directory(tmp_path / "out", {"key": made}) as staging:
        (staging.output / "file").touch()
    with pytest.raises(AssertionError), resumable_directory(tmp_path / "out", {"key": made}) as staging:
        staging.store.keep("a.sums", {})
    assert (tmp_path / "out/file").exists()


def test_notes_of_a_changed_source_are_not_resumed(small: None, tmp_path: Path):
    """Those of the first run hold values from before the change: its key must not be that of the changed source."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "weights").write_text("1")

    def run(broken: str = "") -> list[str]:
        found = Source(broken)
        with resumable_directory(tmp_path / "out", {"source": Content(source)}) as staging:
            if broken == "changed":
                (source / "weights").write_text("22")
                found.broken = "c"
            found.write(*staging)
        return found.asked

    with pytest.raises(KeyboardInterrupt):
        run("changed")
    with pytest.raises(KeyboardInterrupt):
        run("c")  # asks for all anew
    assert run()[0] == "c"


def test_damaged_notes_are_one_line(tmp_path: Path):
    store = Store(tmp_path / "notes")
    store.keep("a.sums", {"x": torch.ones(3)}, {"tokens": 7})
    whole = (store.directory / "a.sums").read_bytes()
    for seed in range(COUNT):
        (store.directory / "a.sums").write_bytes(mutated(whole, seed))
        with right_or_one_line():
            store.load("a.sums")


def test_a_damaged_key_starts_afresh(small: None, tmp_path: Path):
    for damaged in (b"", b"{", b"\xff\xfe", b"[" * 100_000):
        broken = Source("c")
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", broken)
        assert broken.asked[0] == "a"
        (tmp_path / ".out.partial/key.json").write_bytes(damaged)
