"""Run a preset with several seeds by `dvc repro` and tabulate means and standard deviations.

    python -m benchmarks.seeds books-small --seeds 0,1,2 --jobs 2

Writes benchmarks/results/PRESET.json and .md.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from benchmarks.runs import COSTS, RESULTS, mean, revision, run_seeds, spread
from mcsmoe.checkpoint.output import write_json
from mcsmoe.tasks.score import BOUNDS


def main(
    preset: Annotated[str, typer.Argument(help="Name of a file in presets/, without its ending.")],
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    jobs: Annotated[int, typer.Option(help="Pipelines at a time.")] = 1,
    rev: Annotated[str, typer.Option(help="Commit of this repository whose code and preset run.")] = "HEAD",
) -> None:
    """Run PRESET once a seed; write the table of means and spreads."""
    commit = revision(rev)
    runs = run_seeds(preset, [int(seed) for seed in seeds.split(",")], commit, jobs, "seeds")
    command = f"python -m benchmarks.seeds {preset} --seeds {seeds} --jobs {jobs}"
    record = {"command": command, "revision": commit, "cores": os.cpu_count(), "runs": runs}
    write_json(RESULTS / f"{preset}.json", record)
    (RESULTS / f"{preset}.md").write_text(table(preset, command, list(runs.values())))
    print((RESULTS / f"{preset}.md").read_text())


def table(preset: str, command: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown with mean ± sample standard deviation over runs, and a row for each step and method."""
    figures = [run["figures"] for run in runs]
    shown = [
        name for name in figures[0]["full"] if name not in COSTS and "_match_" not in name and not name.endswith(BOUNDS)
    ]
    minutes = statistics.mean(run["minutes"] for run in runs)
    lines = [
        f"# {preset}, {len(runs)} seeds",
        "",
        f"`{command}`: {minutes:.0f} minutes a seed; mean ± standard deviation over seeds.",
        "",
        f"| step | method | {' | '.join(shown)} | parameters | bytes | of full | experts | FLOPs/token |",
        "|---|---|" + "---:|" * (len(shown) + 5),
    ]
    for row in figures[0]:
        step, _, method = row.partition("-")
        parameters, size, experts, flops = (mean(figures, row, name) for name in COSTS)
        cells = [spread(figures, row, name) for name in shown]
        cells += [f"{parameters:,.0f}", f"{size:,.0f}", f"{size / mean(figures, 'full', 'bytes'):.1%}"]
        lines.append(f"| {step} | {method or '–'} | {' | '.join(cells)} | {experts:.0f} | {flops:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
