"""Start-up: what a command costs before it computes anything.

    python -m benchmarks.startup [--quick]

Times the help of both doors, a merge of a tiny model by a stage that is run by itself and by one within a run of dvc,
where a fork does it, and `dvc repro` when nothing has changed. For comparison, a Python process that only imports torch
and transformers. The whole measurement adds `dvc repro` with an empty cache, and compares its table with the committed
one. The quick one asks dvc about a clone without artifacts, with --dry: it compares hashes of code and parameters only.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
import yaml

from benchmarks.side_by_side import Claim, Times, in_turns, save, table
from stages.handover import STAGE

ROOT = Path(__file__).parent.parent
HELP, STAGE_HELP = "mcsmoe --help", "python -m stages.merge --help"
IMPORTS, ALONE, WITHIN = "import torch, transformers", "tiny merge stage by itself", "tiny merge stage within dvc repro"
NO_OP, WHOLE = "dvc repro, nothing has changed", "dvc repro, empty cache"
LIMITS = {HELP: 0.2, STAGE_HELP: 0.2, ALONE: 4.0, WITHIN: 4.0, NO_OP: 2.0, WHOLE: 300.0}


class Clone:
    """A clone of the last commit in `directory`, in which Python commands run."""

    def __init__(self, directory: Path) -> None:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(directory)], check=True)
        self.directory = directory

    def run(self, *arguments: str, stage: str | None = None) -> None:
        """Run `python ARGUMENT ...`, as the command of a dvc `stage` if one is given; exit if it fails."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # dvc starts `python`
        environment = os.environ | {"PATH": path} | ({STAGE: stage} if stage else {})
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: {done.stderr}")


def start_up(clone: Clone, rounds: int) -> dict[str, Times]:
    """Times of commands that have nothing to compute."""
    file = clone.directory / "params.yaml"
    params = yaml.safe_load(file.read_text())
    params["finetune"]["epochs"] = 0.01  # any model will do
    file.write_text(yaml.safe_dump(params))
    clone.run("-m", "dvc", "repro", "collect")
    merge = "-m", "stages.merge", "--method", "m-smoe"
    works = {
        HELP: lambda: clone.run("-m", "mcsmoe.cli", "--help"),
        STAGE_HELP: lambda: clone.run("-m", "stages.merge", "--help"),
        IMPORTS: lambda: clone.run("-c", "import torch, transformers.modeling_utils"),
        ALONE: lambda: clone.run(*merge),
        # This process stands for dvc; in the round that does not count, the stage starts the warm process.
        WITHIN: lambda: clone.run(*merge, stage="merge@m-smoe"),
    }
    return in_turns(works, rounds)


def reproduce(clone: Clone, rounds: int) -> tuple[dict[str, Times], Claim]:
    """Times of dvc with an empty cache and then with nothing to do, and whether the figures are the committed ones."""
    text = clone.directory / "report/table.md"
    committed, begin, cpu = text.read_text(), time.perf_counter(), os.times()
    clone.run("-m", "dvc", "repro", "--no-run-cache")
    ended = os.times()
    spent = ended.children_user + ended.children_system - cpu.children_user - cpu.children_system
    times = {WHOLE: Times([time.perf_counter() - begin], [spent])}
    differs = Claim("report/table.md differs from the committed one (1: yes)", float(text.read_text() != committed), 0)
    return times | in_turns({NO_OP: lambda: clone.run("-m", "dvc", "repro")}, rounds), differs


def main(
    quick: Annotated[bool, typer.Option(help="Without dvc repro from nothing, and fewer rounds.")] = False,
) -> None:
    """Measure, print and save."""
    rounds, claims = (3, []) if quick else (9, [])
    with TemporaryDirectory() as scratch:
        clone = Clone(Path(scratch) / "clone")
        if quick:
            times = in_turns({NO_OP: lambda: clone.run("-m", "dvc", "repro", "--allow-missing", "--dry")}, rounds)
        else:
            times, differs = reproduce(clone, rounds)
            claims.append(differs)
        times |= start_up(clone, rounds)
    claims += [
        Claim(f"{name}, s", round(times[name].median, 3), limit) for name, limit in LIMITS.items() if name in times
    ]
    rows = [[name, *map(float, (found.median, min(found.clock), max(found.clock)))] for name, found in times.items()]
    text = table(["command", "median, s", "least", "most"], rows)
    print(text)
    command = "python -m benchmarks.startup"
    save("startup", "Start-up", command, text, {"times": times}, claims, quick)


if __name__ == "__main__":
    typer.run(main)
