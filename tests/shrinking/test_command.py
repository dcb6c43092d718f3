"""`mcsmoe shrink` and `mcsmoe evaluate` as they are typed."""

import json
import sys
from pathlib import Path

import pytest
import typer

from mcsmoe import cli
from mcsmoe.shrinking.texts import MIX

COMMAND = ["shrink", "mixtral", "--experts", "3", "--output", "out", "--text", "text", "--samples", "8"]


@pytest.fixture(autouse=True)
def workplace(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "idle", lambda: None)  # the tests keep their own Ctrl-C


def left(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit code of the command."""
    monkeypatch.setattr(sys, "argv", ["mcsmoe", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_the_figures_are_one_json_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert left(monkeypatch, *COMMAND, "--yes", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads(Path("out/shrink.json").read_text())
    assert err.startswith("model     mixtral: mixtral, ")
    # The card's command gives the card's figure.
    assert left(monkeypatch, "evaluate", "out", "--samples", "8", "--text", "text", "--json") == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["perplexity"] == pytest.approx(found["result"]["value"], rel=1e-5)
    assert "mcsmoe evaluate out --samples 8 --text text" in Path("out/README.md").read_text()
    # A second time, there is nothing to ask and nothing to do.
    assert left(monkeypatch, *COMMAND) == 0
    out, err = capsys.readouterr()
    assert out.startswith("result      ")
    assert err == ""


def test_it_asks_before_it_starts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert left(monkeypatch, *COMMAND) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        "model", "keeps", "method", "result", "measures", "disk", "memory", "time"
    ]  # fmt: skip
    assert lines[-1] == "error: nobody can be asked here whether to start: add --yes"
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    assert left(monkeypatch, *COMMAND) == 0
    assert not Path("out").exists()
    assert not list(Path().glob(".out*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--size", "50%"], "error: give either the number of experts to keep or the size of the result"),
        (["--experts", "9"], "error: experts = 9: from 1 to 3: the smallest layer has 4"),
        (["--memory-limit", "much"], "error: memory_limit = 'much': a size such as 16GB"),
        (["--text", "nowhere at all"], "error: text nowhere at all: there is no such directory or file"),
        (["--memory-limit", "1MB"], "error: memory_limit = 1000000: shrink needs "),
    ],
)
def test_a_mistake_is_one_line(
    changes: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert left(monkeypatch, *COMMAND, *changes, "--yes") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(message)


def test_help_names_the_mix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert left(monkeypatch, "shrink", "--help") == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for sets in MIX.values():
        for each in sets:
            name = each.hub.rpartition("/")[2]
            assert name in told
