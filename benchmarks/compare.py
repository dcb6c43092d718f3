"""Compare the paper's methods on equal terms: per seed one fine-tuned model, with equal groups, budget and training.

    python -m benchmarks.compare

benchmarks/compare.yaml lists presets, seeds and methods. Writes benchmarks/results/compare.json and .md.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.runs import RESULTS, Figures, mean, revision, run_seeds, spread
from mcsmoe.checkpoint.output import write_json

PLAN = Path(__file__).with_suffix(".yaml")


def main(
    jobs: Annotated[int, typer.Option(help="Pipelines at a time.")] = 3,
    rev: Annotated[str, typer.Option(help="Commit of this repository whose code and presets run.")] = "HEAD",
) -> None:
    """Run every method of compare.yaml on every preset and seed; write a table of means and standard deviations."""
    plan, commit, command = (
        yaml.safe_load(PLAN.read_text()),
        revision(rev),
        f"python -m benchmarks.compare --jobs {jobs}",
    )
    runs = {
        preset: run_seeds(preset, plan["seeds"], commit, jobs, "compare", methods=plan["methods"])
        for preset in plan["presets"]
    }
    record = {"command": command, "revision": commit, "cores": os.cpu_count(), "runs": runs}
    write_json(RESULTS / "compare.json", record)
    (RESULTS / "compare.md").write_text(table(plan, record))
    print(table(plan, record))


def table(plan: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return Markdown with a section for each preset."""
    head = f"# The methods of the paper, {len(plan['seeds'])} seeds\n\n`{record['command']}`; mean ± standard deviation"
    parts = [f"{head} over seeds. A method that drops experts while it is distilled has nothing to show one-shot.\n"]
    for preset, found in record["runs"].items():
        parts.append(section(preset, plan["metrics"][preset], plan["methods"], list(found.values())))
    return "\n".join(parts)


def section(preset: str, metric: str, methods: Mapping[str, Sequence[str]], runs: Sequence[Mapping[str, Any]]) -> str:
    """Return Markdown with a row for each method: quality one-shot and after distillation, experts and size."""
    figures: list[Figures] = [run["figures"] for run in runs]
    minutes = statistics.mean(run["minutes"] for run in runs)
    full = mean(figures, "full", "bytes")
    lines = [
        f"## {preset}: {metric.replace('_', ' ')}",
        "",
        f"The full model: {spread(figures, 'full', metric)}, {full / 1e6:.2f} MB. {minutes:.0f} minutes a seed.",
        "",
        "| method | one-shot | distilled | experts | size of full |",
        "|---|---:|---:|---:|---:|",
    ]
    for method in [*methods["dense"], *methods["merge"]]:
        shot, distilled = f"merge-{method}", f"distill-{method}"
        # Experts and size are those after distillation, because progressive methods drop experts during it.
        last = distilled if distilled in figures[0] else shot
        # Before distillation, a progressive method still has all experts and is just the full model.
        untouched = mean(figures, shot, "experts") == mean(figures, "full", "experts")
        shown = [row for row in (shot, distilled) if row in figures[0] and not (untouched and row == shot)]
        cells = [spread(figures, row, metric) if row in shown else "" for row in (shot, distilled)]
        size = mean(figures, last, "bytes") / full
        lines.append(f"| {method} | {' | '.join(cells)} | {mean(figures, last, 'experts'):.0f} | {size:.1%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
