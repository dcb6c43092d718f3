"""A disk that is really full: a small file system mounted where a stage writes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcsmoe.checkpoint.reader import WEIGHTS
from stages import collect, merge, permute
from tests.stages.workplace import enter

ROOT = Path(__file__).parent.parent.parent
MERGED = Path("artifacts/merge")
# As if another program took the room after it was found to be there.
UNSEEN = "import mcsmoe.checkpoint.writer as w; w.check_room = lambda *_: None; "
RUN = "from stages import merge; from stages.common import run; run(merge.main)"


@pytest.fixture
def nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """artifacts/merge with a finished method in it, and no room for a second one."""
    enter(tmp_path, monkeypatch)
    permute.main()
    collect.main()
    MERGED.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(MERGED)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small file system is not allowed here: {error}")
    try:
        merge.main("one")
        free = os.statvfs(MERGED).f_bavail * os.statvfs(MERGED).f_bsize
        (MERGED / "ballast").write_bytes(bytes(max(free - 65536, 0)))
        yield MERGED
    finally:
        subprocess.run(["umount", str(MERGED)], check=True)


@pytest.mark.parametrize(
    ("before", "message"),
    [("", "bytes needed"), (UNSEEN, "artifacts/merge/m-smoe: No space left on device")],
)
def test_a_full_disk_is_one_line_and_leaves_the_rest_intact(nearly_full: Path, before: str, message: str):
    kept = (nearly_full / "one" / WEIGHTS).read_bytes()
    ran = subprocess.run(
        [sys.executable, "-c", before + RUN, "--method", "m-smoe"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2, ran.stderr
    *progress, error = ran.stderr.splitlines()
    assert all(line.startswith("merge m-smoe, bytes: ") for line in progress)
    assert error.startswith("error: ")
    assert message in error
    assert sorted(path.name for path in nearly_full.iterdir()) == ["ballast", "one"]
    assert (nearly_full / "one" / WEIGHTS).read_bytes() == kept
