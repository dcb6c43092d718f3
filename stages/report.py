"""Gather what was measured into a page, a table and pictures."""

import json
from pathlib import Path
from typing import Any

from stages.common import run, start

REPORT = Path("report")
METRICS = Path("metrics/evaluate")
PLOTS = Path("plots")
STATISTICS = Path("artifacts/collect")


def main() -> None:
    """Write report/index.html, and for elsewhere table.md, quality against size, and expert use."""
    params = start()
    from mcsmoe.calibration.statistics import RoutingStatistics
    from mcsmoe.report.curves import curves_section
    from mcsmoe.report.figure import INK, colours, save
    from mcsmoe.report.groups import expert_use, similarity_section
    from mcsmoe.report.page import provenance_section, report_page
    from mcsmoe.report.results import results_section
    from mcsmoe.report.stable_rank import stable_rank_section
    from mcsmoe.report.table import Metric, Result, results_table
    from mcsmoe.report.tradeoff import quality_size, tradeoff_section
    from mcsmoe.report.use import groupings, use_section
    from mcsmoe.similarity.evidence import cosine
    from mcsmoe.tasks.reading import fingerprint
    from mcsmoe.tasks.task import TASKS

    # By the names in params, never by glob: a file of a method that is no longer listed is stale.
    methods = params.methods
    steps = {
        "merge": methods.merge + methods.dense,
        "distill": methods.distill + methods.dense,
        "compress": methods.compress,
    }
    names = [(step, method, f"{step}-{method}") for step, listed in steps.items() for method in listed]
    results = [Result(step, method, _read(METRICS / file)) for step, method, file in [("full", "–", "full"), *names]]
    task = TASKS[params.task.name]
    metric = Metric(task.metric, task.higher_is_better)
    statistics = RoutingStatistics.load(STATISTICS)
    found = groupings({method: _read(PLOTS / "use" / method) for method in methods.merge})
    similarity = {name: cosine(layer.logits_gram).numpy() for name, layer in statistics.layers.items()}
    trained = {"full": _read(PLOTS / "finetune")} | {method: _read(PLOTS / method) for method in methods.dense}
    trainings = {"finetune": trained} | {
        step: {method: _read(PLOTS / step / method) for method in listed}
        for step, listed in steps.items()
        if step != "merge"
    }
    data = {split: task.examples(params.task, split) for split in ("train", "test")}
    sections = [
        results_section(results, metric),
        tradeoff_section(results, metric),
        use_section(found),
        similarity_section(similarity, found),
        stable_rank_section({method: _read(PLOTS / "stable-rank" / method) for method in methods.distill}),
        curves_section(trainings, {"full": INK} | colours(steps["merge"])),
        provenance_section(params, statistics.provenance, {
            split: {"examples": len(examples), "fingerprint": fingerprint(examples)} for split, examples in data.items()
        }),
    ]  # fmt: skip
    use = {name: layer.frequency.tolist() for name, layer in statistics.layers.items()}
    save(quality_size(results, metric), REPORT / "quality-size.svg")
    save(expert_use(use), REPORT / "expert-use.svg")
    table = results_table(results, metric).markdown()
    (REPORT / "table.md").write_text(table)
    (REPORT / "index.html").write_text(report_page(params.task.name, results, metric, sections))
    print(table, end="")


def _read(path: Path) -> Any:
    return json.loads(path.with_name(f"{path.name}.json").read_text())


if __name__ == "__main__":
    run(main)
