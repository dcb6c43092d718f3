"""Gather what was measured into a table and pictures."""

import json
from pathlib import Path

from stages.common import run, start

REPORT = Path("report")
METRICS = Path("metrics/evaluate")


def main() -> None:
    """Write report/table.md, quality against size, and expert use."""
    params = start()
    from mcsmoe.evaluation.figure import save
    from mcsmoe.evaluation.heatmaps import expert_use
    from mcsmoe.evaluation.table import Metric, Result, results_table
    from mcsmoe.evaluation.tradeoff import quality_size
    from mcsmoe.routing.statistics import RoutingStatistics
    from mcsmoe.tasks.task import TASKS

    # By the names in params, never by glob: a file of a method that is no longer listed is stale.
    names = [("full", "–", "full")]
    for step in ("merge", "distill", "compress"):
        methods = getattr(params.methods, step) + (params.methods.dense if step != "compress" else [])
        names += [(step, method, f"{step}-{method}") for method in methods]
    results = [Result(step, method, json.loads((METRICS / f"{file}.json").read_text())) for step, method, file in names]
    task = TASKS[params.task.name]
    metric = Metric(task.metric, task.higher_is_better)
    statistics = RoutingStatistics.load(Path("artifacts/collect"))
    save(quality_size(results, metric), REPORT / "quality-size.svg")
    use = {name: layer.frequency.tolist() for name, layer in statistics.layers.items()}
    save(expert_use(use), REPORT / "expert-use.svg")
    table = results_table(results, metric)
    (REPORT / "table.md").write_text(table)
    print(table, end="")


if __name__ == "__main__":
    run(main)
