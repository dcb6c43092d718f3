"""What an earlier run has left is read back as it was, or refused in one line."""

import json
from pathlib import Path

import pytest
import torch

from mcsmoe.errors import CheckpointError
from mcsmoe.report.shrunk import Continuation, Estimate, KindLoss
from mcsmoe.shrinking.outcome import Outcome
from mcsmoe.shrinking.workspace import Workspace
from tests.mutations import COUNT, mutated, right_or_one_line

OUTCOME = Outcome(
    settings={"source": "mixtral", "experts": 2, "budget": None},
    model_type="mixtral",
    experts={"decoder.0": (4, 2)},
    size=(1000, 600),
    source=Estimate(6.5, 6.0, 7.0),
    result=Estimate(7.0, 6.5, 7.5),
    ratio=Estimate(1.08, 1.0, 1.2),
    equal_tokens=0.75,
    by_kind={"prose": KindLoss(1.9, 2.0, 40)},
    by_block={"0": 0.01},
    agreement={"decoder.0": 0.9},
    continuations=(Continuation("Once\0", " a", " ü"),),
)


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    path = tmp_path / Outcome.FILE
    path.write_text(json.dumps(OUTCOME.to_json()))
    return path


def test_it_is_what_was_written(figures: Path):
    assert Outcome.load(figures.parent) == OUTCOME


def test_damaged_outcomes_are_one_line(figures: Path):
    whole = figures.read_bytes()
    for seed in range(COUNT):
        figures.write_bytes(mutated(whole, seed))
        with right_or_one_line():
            str(Outcome.load(figures.parent))


def test_figures_without_what_they_say_are_refused(figures: Path):
    figures.write_text(json.dumps(OUTCOME.to_json() | {"size": [1000]}))
    with pytest.raises(CheckpointError, match=r"shrink\.json is damaged .size\.1: .*remove .* and run again"):
        Outcome.load(figures.parent)


def test_a_phase_whose_files_or_notes_are_damaged_is_not_finished(tmp_path: Path):
    def finished() -> tuple[bool, bool]:
        space = Workspace(tmp_path)
        return space.finished("merge", "key"), space.finished("measure", "key")

    def work() -> None:
        space.notes.keep("losses", {"losses": torch.ones(3)})

    space = Workspace(tmp_path)
    space.run("merge", "key", lambda: (tmp_path / "weights").write_text("new"))
    space.run("measure", "key", work)
    assert finished() == (True, True)
    (tmp_path / "weights").write_text("ne")
    assert finished() == (False, True)
    (tmp_path / "weights").write_text("new")
    note = tmp_path / "notes/losses"
    note.write_bytes(note.read_bytes()[:-1] + b"\0")
    assert finished() == (False, False)


def test_a_damaged_record_of_phases_records_none(tmp_path: Path):
    Workspace(tmp_path).run("collect", "key", lambda: None)
    assert Workspace(tmp_path).finished("collect", "key")
    record = tmp_path / "finished.json"
    whole = record.read_bytes()
    for seed in range(COUNT):
        record.write_bytes(mutated(whole, seed))
        with right_or_one_line():
            Workspace(tmp_path).finished("collect", "key")
    for text in ("", "[]", '{"collect": 1}', "{"):
        record.write_text(text)
        assert not Workspace(tmp_path).finished("collect", "key")
