"""A copy of this checkout in a temporary git repository, in which dvc may do what it likes."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline.imports import ROOT


@dataclass(frozen=True)
class Clone:
    """A copy of the files that git knows or would add, committed."""

    path: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as a user would: this Python's programs first on `PATH`, no network."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": "",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }
        for name in ("MAKEFLAGS", "MAKELEVEL"):  # of a `make test` that this runs in
            environment.pop(name, None)
        done = subprocess.run(command, cwd=self.path, env=environment, capture_output=True, text=True)
        if check and done.returncode:
            pytest.fail(f"{' '.join(command)} → {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done

    def commit(self, message: str) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", message)


def copy_checkout(target: Path) -> Clone:
    """A `Clone` of the working tree at `target`, with whatever is not committed yet."""
    command = ["git", "ls-files", "-zco", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    clone = Clone(target)
    clone.run("git", "init", "-q")
    for key, value in (("user.name", "t"), ("user.email", "t@t")):
        clone.run("git", "config", key, value)
    clone.commit("copy")
    return clone
