"""Figure: quality against size, with one path for each method from merged to compressed."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from mcsmoe.report.figure import FAINT, GRID, INK, STYLE, colours, inline
from mcsmoe.report.section import PageSection, section
from mcsmoe.report.table import Metric, Result, size

MARKERS = {"full": "*", "merge": "o", "distill": "s", "compress": "D"}
LABELS = {"full": "full model", "merge": "merged", "distill": "+ distilled", "compress": "+ compressed"}


def quality_size(results: Sequence[Result], metric: Metric) -> Figure:
    """Draw the task's metric over bytes on a logarithmic axis; up is always better; a broad line is the Pareto front.

    `results` starts with the full model; the points of a method are joined in the order of the steps.
    """
    full = results[0]
    methods = list(dict.fromkeys(result.method for result in results[1:]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.6))
        axes = figure.add_subplot()
        axes.grid(zorder=0, linewidth=0.8)
        axes.axhline(full.scores[metric.name], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        front = pareto(results, metric)
        x, y = [r.scores["bytes"] for r in front], [r.scores[metric.name] for r in front]
        axes.plot(x, y, color=FAINT, alpha=0.22, linewidth=9, solid_capstyle="round", zorder=1)
        for method, colour in colours(methods).items():
            path = [r for r in results if r.method == method]
            x, y = [r.scores["bytes"] for r in path], [r.scores[metric.name] for r in path]
            axes.plot(x, y, color=colour, linewidth=1.3, alpha=0.55, zorder=2)
            for result, a, b in zip(path, x, y, strict=True):
                axes.plot(a, b, MARKERS[result.step], color=colour, markersize=7.5,
                          markeredgecolor="white", markeredgewidth=1.1, zorder=3)  # fmt: skip
        axes.plot(full.scores["bytes"], full.scores[metric.name], MARKERS["full"], color=INK, markersize=15,
                  markeredgecolor="white", zorder=4)  # fmt: skip
        _size_axis(axes, results)
        if not metric.higher_is_better:
            axes.invert_yaxis()
        name = metric.name.replace("_", " ")
        axes.set_ylabel(name if metric.higher_is_better else f"{name} (lower is better: up)")
        axes.set_title("Quality against size", pad=12)
        _legends(axes, methods, {result.step for result in results})
    return figure


def pareto(results: Sequence[Result], metric: Metric) -> list[Result]:
    """Return the results on the Pareto front, smallest first: no other result is as small and as good.

    Of results with equal size and quality, the first one is on it.
    """
    front: list[Result] = []
    for result in sorted(results, key=lambda r: (r.scores["bytes"], -metric.gain(r.scores[metric.name], 0.0))):
        if not front or metric.gain(result.scores[metric.name], front[-1].scores[metric.name]) > 0:
            front.append(result)
    return front


def _size_axis(axes: Axes, results: Sequence[Result]) -> None:
    """Ticks at halvings of the full model's size, labelled in bytes and as a share of it."""
    full = results[0].scores["bytes"]
    smallest = min(result.scores["bytes"] for result in results)
    ticks = [full]
    while ticks[-1] > smallest:
        ticks.append(ticks[-1] / 2)
    axes.set_xscale("log")
    axes.set_xticks(ticks)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{size(x, '.3g')}\n{x / full:.3g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(smallest / 1.15, full * 1.15)
    axes.set_xlabel("bytes of safetensors on disk")


def _legends(axes: Axes, methods: Sequence[str], steps: set[str]) -> None:
    lines = [Line2D([], [], color=colour, linewidth=3, label=method) for method, colour in colours(methods).items()]
    shapes = [
        Line2D([], [], color=INK, linestyle="", marker=MARKERS[step], label=LABELS[step],
               markersize=11 if step == "full" else 6.5)
        for step in MARKERS
        if step in steps
    ]  # fmt: skip
    right = {"loc": "upper left", "alignment": "left", "borderaxespad": 0.0}
    first = axes.legend(handles=lines, title="method", bbox_to_anchor=(1.03, 1.0), **right)
    axes.add_artist(first)
    axes.legend(handles=shapes, title="step", bbox_to_anchor=(1.03, 0.86 - 0.075 * len(methods)), **right)
    for spine in axes.spines.values():
        spine.set_color(GRID)


def tradeoff_section(results: Sequence[Result], metric: Metric) -> PageSection:
    """Draw and list the Pareto front; `results` starts with the full model."""
    picture = inline(quality_size(results, metric), "tradeoff", f"{metric.name} against bytes of each checkpoint")
    return section(
        "Pareto front",
        "tradeoff.html",
        picture=picture,
        front=pareto(results, metric),
        full=results[0],
        metric=metric,
    )
