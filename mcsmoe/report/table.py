"""The table of results: every step and method beside the full model."""

from collections.abc import Sequence
from dataclasses import dataclass

from mcsmoe.tasks.score import BOUNDS

CONTROL = "one"
"""The method that averages all experts of a layer: where it costs nothing, merging cannot be judged."""

HARMLESS = 0.01
"""Relative loss of quality up to which the control counts as costing nothing."""

COSTS = ("parameters", "bytes", "experts", "flops_per_token")


@dataclass(frozen=True)
class Result:
    """The figures of one checkpoint: the task's, and `COSTS`. The full model has the method "–"."""

    step: str
    method: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Metric:
    """The figure that stands for quality."""

    name: str
    higher_is_better: bool

    def gain(self, score: float, reference: float) -> float:
        """How much better `score` is than `reference`; negative where it is worse."""
        return score - reference if self.higher_is_better else reference - score


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, a row a result; `notes` are Markdown."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """The table and its notes."""
        lines = [self.header, ["---", "---", *["---:"] * (len(self.header) - 2)], *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([body, *self.notes]) + "\n"


def results_table(results: Sequence[Result], metric: Metric) -> Table:
    """A row a result, the full model first; the notes say what the control tells of the benchmark."""
    full = results[0]
    control = _control_score(results, metric)
    telling = control is not None and _tells(control, full, metric)
    extra = [name for name in full.scores if _stands_alone(name, metric)]
    header = ["step", "method", title(metric.name), "Δ to full", *map(title, extra)]
    header += ["gap kept"] if telling else []
    header += ["parameters", "size", "of full", "experts", "FLOPs/token"]
    rows = []
    for result in results:
        score = result.scores[metric.name]
        row = [result.step, result.method, f"{score:.4f}"]
        row.append("" if result is full else signed(score - full.scores[metric.name]))
        row += [f"{result.scores[name]:.4f}" for name in extra]
        if telling and control is not None:
            row.append(percent(metric.gain(score, control) / metric.gain(full.scores[metric.name], control)))
        rows.append(row + _costs(result, full))
    return Table(header, rows, _notes(control, telling, full, metric))


def signed(value: float) -> str:
    """A difference with four digits and a sign that is as wide as the plus; nothing is written as −0."""
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")


def _costs(result: Result, full: Result) -> list[str]:
    cost = result.scores
    return [
        f"{cost['parameters']:,.0f}",
        f"{cost['bytes'] / 1e6:,.2f} MB",
        percent(cost["bytes"] / full.scores["bytes"]),
        f"{cost['experts']:.0f}",
        f"{cost['flops_per_token'] / 1e6:,.3f} M",
    ]


def _stands_alone(name: str, metric: Metric) -> bool:
    """Figures apart from costs, bounds of intervals, the metric itself, and its breakdown (`exact_match_copy`)."""
    part = name == metric.name or name.startswith(f"{metric.name}_")
    return not (part or name in COSTS or name.endswith(BOUNDS))


def _control_score(results: Sequence[Result], metric: Metric) -> float | None:
    scores = [r.scores[metric.name] for r in results if (r.step, r.method) == ("merge", CONTROL)]
    return scores[0] if scores else None


def _tells(control: float, full: Result, metric: Metric) -> bool:
    score = full.scores[metric.name]
    return metric.gain(score, control) > HARMLESS * abs(score)


def _notes(control: float | None, telling: bool, full: Result, metric: Metric) -> list[str]:
    if control is None:
        return []
    lost = f"The control `{CONTROL}` (all experts of a layer averaged into one, no distillation)"
    between = f"{control:.4f} against {full.scores[metric.name]:.4f}"
    if telling:
        return [
            f"{lost} loses clearly: {between}. *Gap kept* is the share of that gap which a row still has: "
            f"100 % is the full model, 0 % the control."
        ]
    return [f"**{lost} loses nothing here ({between}): this benchmark says nothing about merging.**"]


def percent(share: float) -> str:
    """A share in percent with one digit."""
    return f"{100 * share + 0.0:.1f} %".replace("-", "−")


def title(name: str) -> str:
    """The name of a figure as people write it."""
    return name.replace("_", " ")
