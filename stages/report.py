"""Turn all measurements into a page, a table and figures, and into the files for `dvc metrics` and `dvc plots`."""

from pathlib import Path
from typing import Any

from stages.common import FIGURES, run, start

REPORT = Path("report")
PICTURES = Path("artifacts/pictures")
METRICS = Path("metrics")
PLOTS = Path("plots")
STATISTICS = Path("artifacts/collect")


def main() -> None:
    """Write report/, metrics/, plots/ and artifacts/pictures from artifacts/figures and the routing statistics."""
    page, groups, ranks = REPORT / "index.html", PICTURES / "groups", PICTURES / "stable-rank"
    params = start(files=[page, METRICS / "quality.json", PLOTS / "use.json"], directories=[groups, ranks])
    from mcsmoe.calibration.statistics import RoutingStatistics
    from mcsmoe.checkpoint.output import atomic_directory, json_text, write_files
    from mcsmoe.report.curves import curves_section
    from mcsmoe.report.figure import INK, colours, save, svg
    from mcsmoe.report.gathered import Gathered, metric_files, plot_rows
    from mcsmoe.report.groups import excerpt, expert_use, framed, similarity_groups, similarity_section
    from mcsmoe.report.page import provenance_section, report_page
    from mcsmoe.report.results import results_section
    from mcsmoe.report.stable_rank import moments, stable_rank_figure, stable_rank_section
    from mcsmoe.report.table import Metric, results_table
    from mcsmoe.report.tradeoff import quality_size, tradeoff_section
    from mcsmoe.report.use import groupings, use_rows, use_section
    from mcsmoe.similarity.evidence import cosine
    from mcsmoe.tasks.reading import fingerprint
    from mcsmoe.tasks.task import TASKS

    task = TASKS[params.task.name]
    metric = Metric(task.metric, task.higher_is_better)
    gathered = Gathered.read(FIGURES, params.methods, metric.name)
    results = gathered.results
    statistics = RoutingStatistics.load(STATISTICS)
    similarity = {name: cosine(layer.logits_gram).numpy() for name, layer in statistics.layers.items()}
    frequency = {name: layer.frequency.tolist() for name, layer in statistics.layers.items()}
    use = {method: use_rows(plan, frequency) for method, plan in gathered.plans.items()}
    found = groupings(use)
    data = {"train": task.examples(params.task, "train")}
    data["test"] = task.examples(params.task, "test")[: params.evaluate.limit]
    known = {split: {"examples": len(each), "fingerprint": fingerprint(each)} for split, each in data.items()}
    sections = [
        results_section(results, metric),
        tradeoff_section(results, metric),
        use_section(found),
        similarity_section(similarity, found),
        stable_rank_section(gathered.ranks),
        curves_section(gathered.curves, {"full": INK} | colours([*gathered.plans, *params.methods.dense])),
        provenance_section(params, statistics.provenance, known),
    ]
    with atomic_directory(groups) as directory:
        for method, plan in gathered.plans.items():
            title = f"{method}: similarity of experts by router logits, and its groups"
            save(similarity_groups(excerpt(similarity), framed(plan), title), directory / f"{method}.svg")
    with atomic_directory(ranks) as directory:
        for method, rows in gathered.ranks.items():
            save(stable_rank_figure(method, moments(rows)), directory / f"{method}.svg")
    table = results_table(results, metric).markdown()
    figures: dict[Path, Any] = {METRICS / f"{name}.json": row for name, row in metric_files(results, metric).items()}
    figures |= {PLOTS / f"{step}.json": plot_rows(curves) for step, curves in gathered.curves.items()}
    figures[PLOTS / "use.json"] = plot_rows(use)
    figures[PLOTS / "stable-rank.json"] = plot_rows(gathered.ranks)
    figures[REPORT / "results.json"] = {"checkpoints": [vars(r) for r in results], "permute": gathered.permute}
    written: dict[Path, str | bytes] = {path: json_text(values) for path, values in figures.items()}
    written[REPORT / "quality-size.svg"] = svg(quality_size(results, metric))
    written[REPORT / "expert-use.svg"] = svg(expert_use(frequency))
    written[REPORT / "table.md"] = table
    written[page] = report_page(params.task.name, results, metric, sections)
    write_files(written)
    print(table, end="")


if __name__ == "__main__":
    run(main)
