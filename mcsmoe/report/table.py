"""The table of results: every step and method, compared with the full model."""

from collections.abc import Sequence
from dataclasses import dataclass

from mcsmoe.tasks.score import BOUNDS

CONTROL = "one"
"""The method that averages all experts of a layer: if it costs no quality, the benchmark cannot judge merging."""

COSTS = ("parameters", "bytes", "experts", "flops_per_token")


@dataclass(frozen=True)
class Result:
    """The metrics of one checkpoint: the task's scores and `COSTS`. The full model's method is "–"."""

    step: str
    method: str
    scores: dict[str, float]

    def interval(self, name: str) -> tuple[float, float]:
        """Bounds (low, high) of the 95 % interval of a score; for one that was saved without, the score twice."""
        low, high = (self.scores.get(name + bound, self.scores[name]) for bound in BOUNDS)
        return low, high

    def shown(self, name: str) -> str:
        """A score with its interval, if it has one: 0.9570 (0.944–0.969)."""
        score = f"{self.scores[name]:.4f}"
        low, high = self.interval(name)
        return f"{score} ({low:.3f}–{high:.3f})" if name + BOUNDS[0] in self.scores else score


@dataclass(frozen=True)
class Metric:
    """The metric that stands for quality."""

    name: str
    higher_is_better: bool

    def gain(self, score: float, reference: float) -> float:
        """How much better `score` is than `reference`; negative if it is worse."""
        return score - reference if self.higher_is_better else reference - score

    def better(self, one: Result, other: Result) -> bool:
        """Whether `one` is better than `other`: the intervals of the two scores do not even overlap."""
        (low, high), (other_low, other_high) = one.interval(self.name), other.interval(self.name)
        return low > other_high if self.higher_is_better else high < other_low


@dataclass(frozen=True)
class Table:
    """Cells as shown, with a row for each result; `notes` are Markdown."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """Return the table and its notes as Markdown."""
        lines = [self.header, ["---", "---", *["---:"] * (len(self.header) - 2)], *self.rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([body, *self.notes]) + "\n"


def results_table(results: Sequence[Result], metric: Metric) -> Table:
    """Return a row for each result; `results` starts with the full model.

    Notes say what the intervals tell, and by the control's loss whether the benchmark can judge merging.
    """
    full = results[0]
    control = next((r for r in results if (r.step, r.method) == ("merge", CONTROL)), None)
    telling = control is not None and metric.better(full, control)
    extra = [name for name in full.scores if _stands_alone(name, metric)]
    header = ["step", "method", title(metric.name), "Δ to full", *map(title, extra)]
    header += ["gap kept"] if telling else []
    header += ["parameters", "size", "of full", "experts", "FLOPs/token"]
    rows = []
    for result in results:
        score = result.scores[metric.name]
        row = [result.step, result.method, result.shown(metric.name)]
        row.append("" if result is full else signed(score - full.scores[metric.name]))
        row += [f"{result.scores[name]:.4f}" for name in extra]
        if telling and control is not None:
            worst = control.scores[metric.name]
            row.append(percent(metric.gain(score, worst) / metric.gain(full.scores[metric.name], worst)))
        rows.append(row + _costs(result, full))
    return Table(header, rows, _notes(control, full, metric))


def signed(value: float) -> str:
    """Format a difference with sign and four digits: 0.01 → +0.0100, -0.01 → −0.0100, -0.0 → +0.0000."""
    return f"{round(value, 4) + 0.0:+.4f}".replace("-", "−")


def _costs(result: Result, full: Result) -> list[str]:
    cost = result.scores
    return [
        f"{cost['parameters']:,.0f}",
        size(cost["bytes"]),
        percent(cost["bytes"] / full.scores["bytes"]),
        f"{cost['experts']:.0f}",
        operations(cost["flops_per_token"]),
    ]


def _stands_alone(name: str, metric: Metric) -> bool:
    """Tell whether a metric gets a column: not costs, bounds, the main metric or its breakdown (`exact_match_copy`)."""
    part = name == metric.name or name.startswith(f"{metric.name}_")
    return not (part or name in COSTS or name.endswith(BOUNDS))


def _notes(control: Result | None, full: Result, metric: Metric) -> list[str]:
    notes = []
    if metric.name + BOUNDS[0] in full.scores:
        notes.append(
            "In brackets: 95 % intervals over the test examples; another seed moves figures, too. Where two intervals "
            "overlap, the table does not say which model is better."
        )
    if control is None:
        return notes
    which = f"The control `{CONTROL}` (all experts of a layer averaged into one, no distillation)"
    between = f"{control.shown(metric.name)} against {full.shown(metric.name)}"
    if metric.better(full, control):
        lost = f"{which} loses quality: {between}. *Gap kept* is the share of that gap which a row still has: "
        return [*notes, f"{lost}100 % is the full model, 0 % the control."]
    return [
        *notes,
        f"**{which} is not shown to lose anything ({between}): this benchmark says nothing about merging.**",
    ]


def percent(share: float) -> str:
    """Format a share in percent with one digit: 0.588 → 58.8 %."""
    return f"{100 * share + 0.0:.1f} %".replace("-", "−")


def size(count: float, digits: str = ",.2f") -> str:
    """Format a number of bytes: 3_200_000 → 3.20 MB, 61_070_000_000 → 61.07 GB."""
    return f"{count / 1e6:{digits}} MB" if count < 1e9 else f"{count / 1e9:{digits}} GB"


def operations(count: float) -> str:
    """Format a number of FLOPs: 346_000 → 0.346 M, 6_100_000_000 → 6.100 G."""
    return f"{count / 1e6:,.3f} M" if count < 1e9 else f"{count / 1e9:,.3f} G"


def title(name: str) -> str:
    """Return a metric's name with spaces: exact_match → exact match."""
    return name.replace("_", " ")
