"""Ctrl-C at any moment of a stage: in a terminal it goes to a stage and to all processes that it started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mcsmoe.command
from mcsmoe.errors import UserError
from tests.stages.workplace import write_params

ROOT = Path(__file__).parent.parent.parent

PRELUDE = """
import signal, sys, time
from pathlib import Path
from mcsmoe.interrupt import idle, working
from stages.common import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
"""
IN_AN_OUTPUT = """
from mcsmoe.checkpoint.output import atomic_directory
def main():
    with atomic_directory(Path("output")) as directory:
        (directory / "weights").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
run(main)
"""
IN_A_FINALISER = """
class Last:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
def main():
    working()
    Last()
    time.sleep(60)
idle()
run(main)
"""
DEAF = """
import mcsmoe.interrupt
mcsmoe.interrupt.SECONDS = 0.1
def main():
    working()
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
idle()
run(main)
"""
WAIT = "print('ready', flush=True); import time; time.sleep(60)"
SWALLOW = f"try:\n    {WAIT}\nexcept BaseException as error:\n    raise ImportError('no library') from error"
NOTHING = "import sys; from unittest.mock import MagicMock; sys.modules[__name__] = MagicMock()"
"""A library of which everything can be called."""
IF = "import os\nif os.environ.get({!r}): {}"


def interrupted(command: list[str], place: Path) -> str:
    """Run a command in `place` until it prints that it is ready, send Ctrl-C to its group; its errors, stripped."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=place,
        env=os.environ | {"PYTHONPATH": f"{place}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=40)
    assert process.returncode == 130, stderr
    return stderr.strip()


@pytest.mark.parametrize("script", [IN_AN_OUTPUT, IN_A_FINALISER, DEAF], ids=["output", "finaliser", "deaf"])
def test_ctrl_c_ends_a_stage_with_one_line_and_leaves_nothing(script: str, tmp_path: Path):
    stage = tmp_path / "stage.py"
    stage.write_text(PRELUDE + script)
    place = tmp_path / "place"
    place.mkdir()
    said = interrupted([str(stage)], place)
    assert said == f"interrupted: nothing half written; run `python {stage}` again, or `dvc repro`"
    assert not list(place.iterdir())


@pytest.mark.parametrize("library", ["typer", "pydantic", "torch", "transformers"])
def test_ctrl_c_while_a_stage_imports(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_params()
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text(NOTHING)
    (tmp_path / f"{library}.py").write_text(SWALLOW)
    said = interrupted(["-m", "stages.permute"], tmp_path)
    assert said == "interrupted: nothing half written; run `python -m stages.permute` again, or `dvc repro`"


def ends(process: int) -> bool:
    """Whether a process ends within seconds; it may have been killed an instant ago."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow  # three processes after each other import torch
def test_ctrl_c_while_several_processes_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_params(plugins=["moment"], launch={"processes": 2})
    tell = f"open('pid', 'w').write(str(os.getpid())); {WAIT}"
    (tmp_path / "moment.py").write_text(f"import os\nif os.environ.get('RANK') == '1': {tell}")
    said = interrupted(["-m", "stages.collect"], tmp_path)
    assert said == "interrupted: nothing half written; run `python -m stages.collect` again, or `dvc repro`"
    assert ends(int((tmp_path / "pid").read_text()))


@pytest.mark.slow  # three processes after each other import torch
def test_a_process_that_is_killed_ends_the_stage_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_params(plugins=["moment"], launch={"processes": 2})
    kill = "os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)"
    (tmp_path / "moment.py").write_text(f"import os, time\nif 'RANK' in os.environ: {kill}")
    command = [sys.executable, "-m", "stages.collect"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True)
    assert ran.returncode == 128 + 9
    assert ran.stderr == (
        "error: process 1 was killed by SIGKILL, as the system does when memory runs out; "
        "run `python -m stages.collect` again\n"
    )


def test_the_first_of_several_processes_tells_of_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    waited: list[tuple[float, str]] = []
    monkeypatch.setattr("time.sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))

    def app() -> None:
        raise UserError("a mistake")

    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            mcsmoe.command.run(app)
    assert waited == [(mcsmoe.command.OTHERS, "error: a mistake\n")]
    assert capsys.readouterr().err == "error: a mistake\n"  # later, if nobody has ended it


def test_a_child_ends_with_its_parent(tmp_path: Path):
    child = "import time; from mcsmoe.interrupt import follow; follow(); print('ready', flush=True); time.sleep(60)"
    parent = (
        "import os, subprocess, sys; from mcsmoe.interrupt import child\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], env=os.environ | child())"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.communicate(timeout=20) == ("", None)  # the child has closed its end, too


def test_a_python_without_the_packages(tmp_path: Path):
    ran = subprocess.run([sys.executable, "-S", "-m", "stages.check"], cwd=ROOT, env={}, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "is not installed in" in ran.stderr
    assert "activate" in ran.stderr
