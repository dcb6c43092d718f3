"""Figure and section: stable rank of experts before merging, after it, and after distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mcsmoe.report.figure import FAINT, PALETTE, STYLE, inline, thinned
from mcsmoe.report.section import PageSection, section

MARKERS = {"before": ("o", FAINT), "merged": ("s", PALETTE[1]), "distilled": ("D", PALETTE[0])}
"""Marker and colour by moment."""

LABELS = 16
"""At most this many layers are named on the axis."""

Ranks = Mapping[str, float]
"""Layer → mean stable rank over its experts and their weights."""

Rows = Sequence[Mapping[str, Any]]
"""Rows with `moment`, `layer` and `stable_rank`."""


def stable_rank_figure(method: str, moments: Mapping[str, Ranks]) -> Figure:
    """Draw the mean stable rank of each layer by moment (`before`, `merged`, `distilled`)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0))
        axes = figure.add_subplot()
        marked = 6 if all(len(values) <= LABELS for values in moments.values()) else 3.5
        for moment, values in moments.items():
            marker, colour = MARKERS[moment]
            # Rounded, so that the figure has the same bytes on another CPU.
            heights = [round(value, 2) for value in values.values()]
            axes.plot(range(len(heights)), heights, marker, color=colour, label=moment, markersize=marked,
                      linestyle="-", linewidth=1.2, markeredgecolor="white")  # fmt: skip
        thinned(axes.xaxis, list(next(iter(moments.values()), {})), LABELS)
        axes.set_title(f"{method}: stable rank of experts, layer by layer", pad=10)
        axes.set_ylabel("mean over experts and weights")
        axes.grid(axis="y", linewidth=0.8)
        axes.margins(y=0.08)  # the topmost markers are not cut off
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="x", rotation=35, length=0)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def stable_rank_section(ranks: Mapping[str, Rows]) -> PageSection:
    """Draw the rows of each method in `ranks`."""
    pictures = [
        inline(stable_rank_figure(method, moments(rows)), f"rank-{i}", f"stable rank of experts, {method}")
        for i, (method, rows) in enumerate(ranks.items())
    ]
    return section("Stable rank", "stable_rank.html", pictures=pictures)


def moments(rows: Rows) -> dict[str, dict[str, float]]:
    """Return the stable rank by moment and layer."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["moment"], {})[row["layer"]] = row["stable_rank"]
    return found
