"""Run a preset with several seeds through `dvc repro` and tabulate mean and spread.

    python -m benchmarks.seeds books-small --seeds 0,1,2 --jobs 2

Each seed runs in a clone of this repository's committed state under .scratch/seeds; the clones share this
repository's DVC cache, so an interrupted benchmark goes on where it stopped. Writes
benchmarks/results/PRESET.json and .md.
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
from typing import Annotated, Any

import typer
import yaml

from mcsmoe.checkpoint.atomic import write_json
from mcsmoe.params import Params
from mcsmoe.tasks.reading import find_directory

ROOT = Path(__file__).parent.parent
STEPS = ("full", "merge", "distill", "compress")


def main(
    preset: Annotated[str, typer.Argument(help="Name of a file in presets/, without its ending.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    jobs: Annotated[int, typer.Option(help="Pipelines at a time.")] = 1,
    rev: Annotated[str, typer.Option(help="Commit of this repository whose code and preset run.")] = "HEAD",
) -> None:
    """Run PRESET once a seed; write the table of means and spreads."""
    chosen = [int(seed) for seed in seeds.split(",")]
    revision = _output(["git", "rev-parse", f"{rev}^{{commit}}"])
    with ThreadPoolExecutor(jobs) as pool:
        runs = dict(zip(chosen, pool.map(lambda seed: run_seed(preset, seed, revision), chosen)))
    results = ROOT / "benchmarks/results"
    command = f"python -m benchmarks.seeds {preset} --seeds {seeds} --jobs {jobs}"
    write_json(
        results / f"{preset}.json", {"command": command, "revision": revision, "cores": os.cpu_count(), "runs": runs}
    )
    (results / f"{preset}.md").write_text(table(preset, command, list(runs.values())))
    print((results / f"{preset}.md").read_text())


def run_seed(preset: str, seed: int, revision: str) -> dict[str, Any]:
    """The figures of every step and method of one seed, and the minutes it took."""
    clone = ROOT / ".scratch/seeds" / f"{preset}-{seed}"
    if not clone.is_dir():
        _run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], ROOT)
    _run(["git", "fetch", "--quiet", "origin"], clone)
    _run(["git", "reset", "--quiet", "--hard", revision], clone)
    _run(["dvc", "config", "--local", "cache.dir", str(ROOT / ".dvc/cache")], clone)
    values = yaml.safe_load((clone / "presets" / f"{preset}.yaml").read_text()) | {"seed": seed}
    if values["task"]["data"]:
        values["task"]["data"] = str(find_directory(values["task"]["data"]) or values["task"]["data"])
    Params.parse(values, f"presets/{preset}.yaml")
    (clone / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    # Seconds add up over interrupted runs: what the cache gives back was paid for before.
    spent = clone.with_suffix(".seconds")
    earlier, started = float(spent.read_text()) if spent.exists() else 0.0, time.monotonic()
    try:
        _run(["dvc", "repro"], clone)
    finally:
        seconds = earlier + time.monotonic() - started
        spent.write_text(f"{seconds:.0f}")
    figures = {file.stem: json.loads(file.read_text()) for file in _wanted(clone, values["methods"])}
    return {"minutes": round(seconds / 60, 1), "figures": figures}


def _wanted(clone: Path, methods: Mapping[str, Sequence[str]]) -> list[Path]:
    names = ["full", *(f"{step}-{method}" for step in STEPS[1:] for method in methods[step])]
    return [clone / "metrics/evaluate" / f"{name}.json" for name in names]


def _run(command: list[str], directory: Path) -> None:
    """Run with this interpreter's programs first; what it prints goes to a log beside the clone."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = directory.parent / f"{directory.name}.log" if directory != ROOT else None
    with open(log or os.devnull, "a") as out:
        subprocess.run(command, cwd=directory, env=environment, stdout=out, stderr=out, check=True)


def _output(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def table(preset: str, command: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: mean ± sample standard deviation over runs, a row for each step and method."""
    first = runs[0]["figures"]
    quality = [name for name in first["full"] if name not in ("parameters", "bytes", "experts", "flops_per_token")]
    shown = [name for name in quality if "_match_" not in name]
    minutes = statistics.mean(run["minutes"] for run in runs)
    lines = [
        f"# {preset}, {len(runs)} seeds",
        "",
        f"`{command}`: {minutes:.0f} minutes a seed; mean ± standard deviation over seeds.",
        "",
        f"| step | method | {' | '.join(shown)} | parameters | bytes | of full | experts | FLOPs/token |",
        "|---|---|" + "---:|" * (len(shown) + 5),
    ]
    full_bytes = statistics.mean(run["figures"]["full"]["bytes"] for run in runs)
    for row in first:
        step, _, method = row.partition("-")
        mean = {name: statistics.mean(run["figures"][row][name] for run in runs) for name in first[row]}
        spread = (
            {name: statistics.stdev([run["figures"][row][name] for run in runs]) for name in shown}
            if len(runs) > 1
            else dict.fromkeys(shown, 0.0)
        )
        cells = [f"{mean[name]:.4f} ± {spread[name]:.4f}" for name in shown]
        cells += [f"{mean['parameters']:,.0f}", f"{mean['bytes']:,.0f}", f"{mean['bytes'] / full_bytes:.1%}"]
        cells += [f"{mean['experts']:.0f}", f"{mean['flops_per_token']:,.0f}"]
        lines.append(f"| {step} | {method or '–'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
