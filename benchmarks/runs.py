"""Runs of a preset with one seed by `dvc repro`, each in a clone of this repository at a commit.

The clones are in .scratch and share this repository's DVC cache. So an interrupted benchmark goes on where it stopped,
and a model that two benchmarks need is trained once.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from mcsmoe.fields import find_directory
from mcsmoe.params import Params

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
STEPS = ("full", "merge", "distill", "compress")
COSTS = ("parameters", "bytes", "experts", "flops_per_token")

Figures = Mapping[str, Mapping[str, float]]
"""Metrics of each checkpoint, by "full" or "step-method", such as "merge-m-smoe"."""


def revision(name: str) -> str:
    """Return the full hash of a commit of this repository."""
    command = ["git", "rev-parse", f"{name}^{{commit}}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def run_seeds(
    preset: str, seeds: Sequence[int], commit: str, jobs: int, name: str, **changes: Any
) -> dict[int, dict[str, Any]]:
    """Call `run_seed` for each seed, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda seed: run_seed(preset, seed, commit, name, **changes), seeds)
        return dict(zip(seeds, found, strict=True))


def run_seed(preset: str, seed: int, commit: str, name: str, **changes: Any) -> dict[str, Any]:
    """Run a preset with one seed; return `figures` of every step and method, and the `minutes` it took.

    `name` is the directory for the clones of one benchmark; `changes` replaces whole sections of the preset.
    """
    clone = ROOT / ".scratch" / name / f"{preset}-{seed}"
    if not clone.is_dir():
        _run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], ROOT)
    _run(["git", "fetch", "--quiet", "origin"], clone)
    _run(["git", "reset", "--quiet", "--hard", commit], clone)
    _run(["dvc", "config", "--local", "cache.dir", str(ROOT / ".dvc/cache")], clone)
    values = yaml.safe_load((clone / "presets" / f"{preset}.yaml").read_text()) | {"seed": seed} | changes
    if values["task"]["data"]:
        values["task"]["data"] = str(find_directory(values["task"]["data"]).resolve())
    Params.parse(values, f"presets/{preset}.yaml")
    (clone / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    # Seconds add up over interrupted runs, because an earlier run paid for what now comes from the cache.
    spent = clone.with_suffix(".seconds")
    earlier, started = float(spent.read_text()) if spent.exists() else 0.0, time.monotonic()
    try:
        _run(["dvc", "repro"], clone)
    finally:
        seconds = earlier + time.monotonic() - started
        spent.write_text(f"{seconds:.0f}")
    figures = {file.stem: json.loads(file.read_text()) for file in _wanted(clone, values["methods"])}
    return {"minutes": round(seconds / 60, 1), "figures": figures}


def spread(figures: Sequence[Figures], row: str, name: str) -> str:
    """Mean ± sample standard deviation of one metric over seeds."""
    values = [each[row][name] for each in figures]
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.4f}"


def mean(figures: Sequence[Figures], row: str, name: str) -> float:
    """Mean of one metric over seeds."""
    return statistics.mean(each[row][name] for each in figures)


def _wanted(clone: Path, methods: Mapping[str, Sequence[str]]) -> list[Path]:
    names = ["full"]
    for step in STEPS[1:]:
        names += [f"{step}-{method}" for method in methods[step]]
        names += [f"{step}-{method}" for method in methods["dense"] if step != "compress"]
    return [clone / "artifacts/figures/scores" / f"{name}.json" for name in names]


def _run(command: list[str], directory: Path) -> None:
    """Run `command` with this interpreter's directory first in PATH; output goes to a log beside the clone."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = directory.parent / f"{directory.name}.log" if directory != ROOT else None
    with open(log or os.devnull, "a") as out:
        subprocess.run(command, cwd=directory, env=environment, stdout=out, stderr=out, check=True)
