"""The command `mcsmoe` as a user meets it: what it prints, and one line for each mistake."""

import importlib
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mcsmoe import cli, interrupt
from mcsmoe.checkpoint.reader import INDEX
from tests.causal import tiny_mixtral
from tests.report.test_plans import PLAN
from tests.stages.test_interrupt import interrupted

ROOT = Path(__file__).parent.parent


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans in the directories one, same and other."""
    monkeypatch.chdir(tmp_path)
    for name, plan in {"one": PLAN, "same": PLAN, "other": replace(PLAN, rule="average")}.items():
        Path(name).mkdir()
        plan.save(Path(name))


def printed(*arguments: str) -> str:
    """What a command that succeeds prints."""
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert not done.stderr
    return done.stdout


def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The line that a command prints which cannot be done."""
    monkeypatch.setattr(sys, "argv", ["mcsmoe", *arguments])
    monkeypatch.setattr(cli, "idle", lambda: None)  # the tests keep their own Ctrl-C
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.usefixtures("plans")
def test_show_and_diff():
    assert "7 of 12 kept in 3 layers" in printed("show", "one")
    assert printed("show", "one/plan.json") == printed("show", "one")
    assert printed("show", "one", "--layer", "decoder.1").startswith("decoder.1: 4 experts, 1 kept\n")
    assert printed("diff", "one", "same") == "the plans are equal\n"
    assert printed("diff", "one", "other").startswith("rule: frequency → average\n")


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["show", "one"], "layers"),
        (["show", "one", "--layer", "decoder.0"], "groups"),
        (["diff", "one", "other"], "settings"),
        (["inspect", "model"], "outcomes"),
    ],
)
def test_one_json_object_and_nothing_else(arguments: list[str], key: str):
    tiny_mixtral().config.save_pretrained("model")
    assert key in json.loads(printed(*arguments, "--json"))


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["show", "none"], "error: none: no plan.json\n"),
        (["show", "one/plan.json/x"], "error: one/plan.json/x: no plan.json\n"),
        (["show", "one", "--layer", "x"], "error: unknown layer 'x'; known: decoder.0, decoder.1, decoder.2\n"),
        (["diff", "one", "none"], "error: none: no plan.json\n"),
        (
            ["inspect", "./none"],
            "error: ./none: no such directory in HERE; give the path of a saved checkpoint or a hub id\n",
        ),
        (["inspect", "one"], "error: one: no config.json; is it a checkpoint directory?\n"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], line: str, capsys, monkeypatch: pytest.MonkeyPatch):
    here = f"{Path.cwd()} and the directories above it"
    assert refused(capsys, monkeypatch, *arguments) == line.replace("HERE", here)


def test_of_a_hub_id_two_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_mixtral().config.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, **options) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert printed("inspect", "some/model").startswith("some/model: MixtralForCausalLM (mixtral)\n")
    assert asked["repository"] == "some/model"
    assert asked["allow_patterns"] == ["config.json", INDEX]


def test_no_hub(capsys, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def nowhere(*args, **options):
        raise LocalEntryNotFoundError("several\nlines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nowhere)
    assert refused(capsys, monkeypatch, "inspect", "some/model") == (
        "error: some/model: no such directory, and no model hub can be reached; give the path of a saved checkpoint\n"
    )


def test_help_names_every_command_and_imports_nothing_heavy():
    script = """
import sys
from mcsmoe.cli import main
try:
    main()
except SystemExit:
    heavy = {"torch", "transformers", "scipy", "matplotlib", "datasets", "pydantic"} & set(sys.modules)
    sys.exit(", ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("inspect", "show", "diff"))


def test_the_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"]["mcsmoe"].split(":")
    assert getattr(importlib.import_module(module), name) is cli.main


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["/venv/bin/mcsmoe", "show", "a b"], "mcsmoe show 'a b'"),
        (["-m", "mcsmoe.cli", "show"], "python -m mcsmoe.cli show"),
        (["stage.py", "--method", "one"], "python stage.py --method one"),
    ],
)
def test_the_command_to_run_again(command: list[str], shown: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "orig_argv", ["/venv/bin/python", *command])
    monkeypatch.setattr(sys, "argv", ["-m" if command[0] == "-m" else command[0]])
    assert interrupt.same_command() == shown


def test_ctrl_c_names_the_same_command_and_no_pipeline(tmp_path: Path):
    script = tmp_path / "mcsmoe"
    script.write_text(
        "import time\nfrom mcsmoe import cli\n"
        "@cli.app.command()\n@cli.interruptible\ndef wait(): print('ready', flush=True); time.sleep(60)\n"
        "cli.main()\n"
    )
    assert interrupted([str(script), "wait"], tmp_path) == (
        "interrupted: nothing half written; run `mcsmoe wait` again"
    )
