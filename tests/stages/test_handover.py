"""Stages that dvc runs one after another: from the second on they are forks, and nobody can tell the difference."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcsmoe import warm
from stages import handover
from tests.stages.test_interrupt import ends
from tests.stages.workplace import write_params

ROOT = Path(__file__).parent.parent.parent
INHERITED = {name: value for name, value in os.environ.items() if name not in (warm.ADDRESS, handover.STAGE)}
ENVIRONMENT = INHERITED | {"PYTHONPATH": str(ROOT)}
"""That of a run of dvc, which is this process here."""
SAYS = "import os, sys; print(sys.flags.isolated, os.getpid(), flush=True)\n"
"""A plugin that tells whether it is in a fork of the warm process, and its number."""


@pytest.fixture(scope="module", autouse=True)
def warm_process() -> None:
    """What the first stage would start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", ENVIRONMENT)
        at = warm.place(os.getpid(), handover.key())
    warm._started(ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, at)


def stage(name: str, *arguments: str, **kwargs: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{name}", *arguments],
        env=ENVIRONMENT | {handover.STAGE: name} | kwargs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def plugin(line: str) -> None:
    write_params(plugins=["moment"])
    Path("moment.py").write_text(SAYS + line)


def started(process: "subprocess.Popen[str]") -> int:
    """The number of the process that does the work of a stage, which its plugin has told."""
    assert process.stdout is not None
    isolated, number = process.stdout.readline().split()
    assert isolated == "1"
    assert int(number) != process.pid
    return int(number)


def test_it_writes_the_same_bytes(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    directories = Path("artifacts/permute"), Path("artifacts/collect"), Path("artifacts/merge/m-smoe")
    expected = {path: path.read_bytes() for each in directories for path in each.rglob("*") if path.is_file()}
    for each in directories:
        shutil.rmtree(each)
    plugin("")
    for name, *arguments in (["permute"], ["collect"], ["merge", "--method", "m-smoe"]):
        process = stage(name, *arguments)
        started(process)
        process.communicate()
        assert process.returncode == 0
    assert [path for path, content in expected.items() if path.read_bytes() != content] == []


def test_a_mistake(place: Path):
    process = stage("merge", "--method", "nothing")
    said = "", "error: no resolved recipe at artifacts/recipes/nothing.yaml: run check\n"
    assert (process.communicate(), process.returncode) == (said, 2)


def test_ctrl_c(place: Path):
    plugin("import time; time.sleep(60)")
    process = stage("permute")
    started(process)
    process.send_signal(signal.SIGINT)
    said = "\ninterrupted: nothing half written; run `python -m stages.permute` again, or `dvc repro`\n"
    assert (process.communicate()[1], process.returncode) == (said, 130)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_that_is_killed_does_not_go_on(how: signal.Signals, place: Path):
    plugin("import time; time.sleep(60)")
    process = stage("permute")
    work = started(process)
    process.send_signal(how)
    assert process.communicate()[1] == ""
    assert process.returncode == -how
    assert ends(work)


def test_work_that_is_killed_ends_the_stage_alike(place: Path):
    plugin("os.kill(os.getpid(), 9)")
    process = stage("permute")
    started(process)
    assert (process.communicate()[1], process.returncode) == ("", -signal.SIGKILL)


def test_another_environment_is_another_run(monkeypatch: pytest.MonkeyPatch):
    """What libraries read from it when they are imported is fixed in the warm process."""
    key = handover.key()
    monkeypatch.setenv(handover.STAGE, "merge@m-smoe")
    assert handover.key() == key
    monkeypatch.setenv("HF_HOME", "elsewhere")
    assert handover.key() != key
