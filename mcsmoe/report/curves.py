"""Figure: one metric over the steps of a training, with a line for each method."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mcsmoe.report.figure import STYLE, inline
from mcsmoe.report.section import PageSection, section

Curve = Sequence[Mapping[str, Any]]
"""Rows of a curve in the order of `step`; a metric that was not measured at a step is null."""

WINDOW = 9
"""Number of points that the bold line of a noisy metric averages."""


def curves(
    curve: Mapping[str, Curve], field: str, title: str, colours: Mapping[str, str], *, noisy: bool = False
) -> Figure:
    """Draw `field` of each method's curve; if it is `noisy`, as faint values below a bold moving average."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.7))
        axes = figure.add_subplot()
        axes.grid(axis="y", linewidth=0.8)
        for method, rows in curve.items():
            points = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
            steps, values = (np.array(each) for each in zip(*points, strict=True))
            if noisy:
                axes.plot(steps, values, color=colours[method], linewidth=0.7, alpha=0.3)
                values = moving_average(values, WINDOW)
            marker = "o" if len(steps) < 2 * WINDOW else ""
            axes.plot(steps, values, color=colours[method], label=method, linewidth=1.6, marker=marker, markersize=4.5)
        axes.set_title(title, pad=8)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if len(curve) > 1:
            axes.legend(loc="best", fontsize=8)
    return figure


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value [n] and those before it, at most `window` values in all → [n]."""
    sums = np.cumsum(np.insert(values.astype(float), 0, 0.0))  # [n + 1]
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


PICTURES = (
    ("finetune", "loss", "Fine-tuning: loss", True),
    ("finetune", "selection", "Fine-tuning: selection split", False),
    ("distill", "loss", "Distillation: loss", True),
    ("compress", "loss", "Compression: loss", True),
    ("compress", "remaining", "Compression: share of S that stays", False),
)
"""Step, metric, title, and whether the metric is noisy."""


def curves_section(trainings: Mapping[str, Mapping[str, Curve]], colours: Mapping[str, str]) -> PageSection:
    """Draw the curves in `trainings`, by step and method; a metric that no row has is left out."""
    pictures = []
    for step, field, title, noisy in PICTURES:
        drawn = {
            method: rows
            for method, rows in trainings.get(step, {}).items()
            if any(row.get(field) is not None for row in rows)
        }
        if drawn:
            figure = curves(drawn, field, title, colours, noisy=noisy)
            pictures.append(inline(figure, f"{step}-{field}", title))
    return section("Training and pruning", "curves.html", pictures=pictures)
