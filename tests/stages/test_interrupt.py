"""Ctrl-C while a stage works."""

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

STAGE = """
import signal, time
from pathlib import Path
from mcsmoe.checkpoint.atomic import atomic_directory
from stages.common import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
def main():
    with atomic_directory(Path("output")) as directory:
        (directory / "weights").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
run(main)
"""


def test_ctrl_c_ends_a_stage_with_one_line_and_leaves_nothing(tmp_path: Path):
    stage = tmp_path / "stage.py"
    stage.write_text(STAGE)
    place = tmp_path / "place"
    place.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(stage)],
        cwd=place,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert stderr.strip() == f"interrupted: nothing written; run `python {stage}` again, or `dvc repro`"
    assert not list(place.iterdir())
