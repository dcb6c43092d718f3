"""PageSection: quality by step and method, then all metrics of each checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mcsmoe.report.section import PageSection, section
from mcsmoe.report.table import Metric, Result, results_table
from mcsmoe.report.tradeoff import pareto


@dataclass(frozen=True)
class Cell:
    """Quality of one method after one step.

    `difference` is to the full model; `verdict` is "better" or "worse" than that, or "" where intervals overlap.
    `bold`: among models smaller than the full one, none of the same step is better.
    """

    score: float
    difference: float
    verdict: str
    bold: bool


def results_section(results: Sequence[Result], metric: Metric) -> PageSection:
    """Show all results; `results` starts with the full model."""
    full, rest = results[0], results[1:]
    steps = list(dict.fromkeys(result.step for result in rest))
    methods = list(dict.fromkeys(result.method for result in rest))
    bold = [r for step in steps for r in _unbeaten([r for r in rest if r.step == step], full, metric)]
    cells = {(r.step, r.method): _cell(r, full, metric, r in bold) for r in rest}
    table = results_table(results, metric)
    front = pareto(results, metric)
    return section(
        "Results",
        "results.html",
        metric=metric,
        full=full,
        steps=steps,
        methods=methods,
        cells=cells,
        table=table,
        bold=[r in bold for r in results],
        front=[r in front for r in results],
        starts=[i > 0 and r.step != results[i - 1].step for i, r in enumerate(results)],
        notes=[_markup(note) for note in table.notes],
    )


def smallest_near(results: Sequence[Result], metric: Metric) -> Result:
    """Return the smallest checkpoint whose interval overlaps that of the full model, else the one that scores best."""
    full, rest = results[0], results[1:]
    near = [r for r in rest if not metric.better(full, r)]
    if near:
        return min(near, key=lambda r: r.scores["bytes"])
    return max(rest, key=lambda r: metric.gain(r.scores[metric.name], 0.0), default=full)


def _unbeaten(results: Sequence[Result], full: Result, metric: Metric) -> list[Result]:
    """Models smaller than the full one to which no other is better: a method that merges nothing loses nothing."""
    small = [r for r in results if r.scores["parameters"] < full.scores["parameters"]]
    return [r for r in small if not any(metric.better(other, r) for other in small)]


def _cell(result: Result, full: Result, metric: Metric, bold: bool) -> Cell:
    score = result.scores[metric.name]
    verdict = "better" if metric.better(result, full) else "worse" if metric.better(full, result) else ""
    return Cell(score, score - full.scores[metric.name], verdict, bold)


def _markup(note: str) -> Markup:
    """HTML of the Markdown that notes use: bold, emphasis, code."""
    text = str(escape(note))
    for mark, tag in (("**", "strong"), ("*", "em"), ("`", "code")):
        parts = text.split(mark)
        text = "".join(f"<{tag}>{part}</{tag}>" if i % 2 else part for i, part in enumerate(parts))
    return Markup(text)
