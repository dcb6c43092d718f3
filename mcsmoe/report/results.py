"""PageSection: quality by step and method, then all metrics of each checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mcsmoe.report.section import PageSection, section
from mcsmoe.report.table import Metric, Result, results_table
from mcsmoe.report.tradeoff import pareto

NEAR = 0.01
"""Relative loss of quality up to which a small model still counts as being as good as the full one."""


@dataclass(frozen=True)
class Cell:
    """Quality of one method after one step; `difference` is to the full model, `best` within the step."""

    score: float
    difference: float
    worse: bool
    best: bool


def results_section(results: Sequence[Result], metric: Metric) -> PageSection:
    """Show all results; `results` starts with the full model."""
    full, rest = results[0], results[1:]
    steps = list(dict.fromkeys(result.step for result in rest))
    methods = list(dict.fromkeys(result.method for result in rest))
    best = {step: _best([r for r in rest if r.step == step], full, metric) for step in steps}
    cells = {(r.step, r.method): _cell(r, full, metric, best[r.step]) for r in rest}
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
        bold=[r is not full and r.scores[metric.name] == best[r.step] for r in results],
        front=[r in front for r in results],
        starts=[i > 0 and r.step != results[i - 1].step for i, r in enumerate(results)],
        notes=[_markup(note) for note in table.notes],
    )


def smallest_near(results: Sequence[Result], metric: Metric) -> Result:
    """Return the smallest checkpoint that loses at most `NEAR` of the full model's quality, else the best one."""
    full, rest = results[0], results[1:]
    floor = -NEAR * abs(full.scores[metric.name])
    near = [r for r in rest if metric.gain(r.scores[metric.name], full.scores[metric.name]) >= floor]
    if near:
        return min(near, key=lambda r: r.scores["bytes"])
    return max(rest, key=lambda r: metric.gain(r.scores[metric.name], 0.0), default=full)


def _best(results: Sequence[Result], full: Result, metric: Metric) -> float | None:
    """Best score among models smaller than the full one, because a method that merges nothing loses nothing."""
    scores = [r.scores[metric.name] for r in results if r.scores["parameters"] < full.scores["parameters"]]
    return max(scores, key=lambda score: metric.gain(score, 0.0), default=None)


def _cell(result: Result, full: Result, metric: Metric, best: float | None) -> Cell:
    score, reference = result.scores[metric.name], full.scores[metric.name]
    small = result.scores["parameters"] < full.scores["parameters"]
    return Cell(score, score - reference, metric.gain(score, reference) < 0, small and score == best)


def _markup(note: str) -> Markup:
    """HTML of the Markdown that notes use: bold, emphasis, code."""
    text = str(escape(note))
    for mark, tag in (("**", "strong"), ("*", "em"), ("`", "code")):
        parts = text.split(mark)
        text = "".join(f"<{tag}>{part}</{tag}>" if i % 2 else part for i, part in enumerate(parts))
    return Markup(text)
