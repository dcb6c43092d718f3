"""Figures: how much each expert is used, and how similar the experts of a layer are, with their groups."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mcsmoe.grouping.plan import Plan
from mcsmoe.report.figure import EMPTY, FAINT, INK, PALETTE, SEQUENTIAL, STYLE, inline
from mcsmoe.report.section import PageSection, section
from mcsmoe.report.use import MethodUse

Groups = Sequence[Sequence[int]]
"""Groups of one layer: expert ids, the dominant expert first."""

ANNOTATED = 16
"""With at most this many experts per layer, cells are large: they show their number and are drawn as vectors."""

COLUMNS = 4
DIGITS = 3
"""Values are rounded to this many digits, so that rounding errors of another CPU change no byte of the figure."""


def expert_use(use: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of selections of each expert, in percent, with a row for each layer; `use` has [E] by layer."""
    shares = np.array([np.round(values, DIGITS) for values in use.values()]) * 100  # [layers, E]
    layers, experts = shares.shape
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.8 + 0.42 * min(experts, 32), 1.3 + 0.42 * layers))
        axes = figure.add_subplot()
        mesh = axes.pcolormesh(shares, cmap=SEQUENTIAL, vmin=0, edgecolors="white", linewidth=1.2)
        axes.set_xticks(np.arange(experts) + 0.5, [str(e) for e in range(experts)])
        axes.set_yticks(np.arange(layers) + 0.5, list(use))
        axes.invert_yaxis()
        axes.set_xlabel("expert")
        axes.set_title("Expert use before merging (% of the layer's tokens)", pad=10)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if experts <= ANNOTATED:
            for (layer, expert), share in np.ndenumerate(shares):
                axes.text(expert + 0.5, layer + 0.5, f"{share:.0f}", ha="center", va="center", fontsize=7.5,
                          color="white" if share > 0.5 * shares.max() else INK)  # fmt: skip
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.04)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    return figure


def similarity_groups(similarity: Mapping[str, np.ndarray], groups: Mapping[str, Groups], title: str) -> Figure:
    """Draw the similarity [E, E] of each layer, experts ordered by group, groups framed, dominant experts in bold.

    The diagonal is left out, so that the colours span the other values. Dropped experts come last. A layer that is
    not in `groups` was not merged: its experts stay in order, without frames.
    """
    columns = min(COLUMNS, len(similarity))
    rows = math.ceil(len(similarity) / columns)
    shown = {name: _off_diagonal(matrix) for name, matrix in similarity.items()}
    limits = min(m.min() for m in shown.values()), max(m.max() for m in shown.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.55 * columns + 0.6, 2.75 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (name, matrix) in zip(grid.flat, shown.items(), strict=False):
            mesh = _panel(axes, name, matrix, groups.get(name), limits)
        for axes in grid.flat[len(similarity) :]:
            axes.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        bar = figure.colorbar(mesh, ax=grid, fraction=0.025, pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.set_label("similarity", color=INK)
    return figure


def framed(plan: Plan) -> dict[str, Groups]:
    """Return the groups of each layer that the plan merges, each with its dominant expert first."""
    return {
        name: [[group.dominant, *(e for e in group.members if e != group.dominant)] for group in layer.groups]
        for name, layer in plan.layers.items()
        if layer.merged
    }


def _panel(
    axes: Axes, name: str, matrix: np.ma.MaskedArray, groups: Groups | None, limits: tuple[float, float]
) -> QuadMesh:
    experts = len(matrix)
    grouped = [e for group in groups or () for e in group]
    order = grouped + [e for e in range(experts) if e not in grouped]
    mesh = axes.pcolormesh(
        matrix[np.ix_(order, order)],
        cmap=SEQUENTIAL,
        vmin=limits[0],
        vmax=limits[1],
        rasterized=experts > ANNOTATED,  # as vectors, thousands of cells would take megabytes
    )
    axes.set_facecolor(EMPTY)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_title(name if groups is None else f"{name} · {experts} → {len(groups)}", fontsize=9)
    small = 7 if experts <= ANNOTATED else 4
    for place in (axes.set_xticks, axes.set_yticks):
        place(np.arange(experts) + 0.5, [str(e) for e in order], fontsize=small)
    axes.tick_params(length=0, pad=1.5)
    for spine in axes.spines.values():
        spine.set_visible(False)
    start = 0
    for group in groups or ():
        size = len(group)
        axes.add_patch(Rectangle((start, start), size, size, fill=False, edgecolor=PALETTE[1], linewidth=1.6,
                                 clip_on=False))  # fmt: skip
        for label in (axes.get_xticklabels()[start], axes.get_yticklabels()[start]):
            label.set_fontweight("bold")
        for i in range(start + 1, start + size):
            for label in (axes.get_xticklabels()[i], axes.get_yticklabels()[i]):
                label.set_color(FAINT)
        start += size
    return mesh


def _off_diagonal(matrix: np.ndarray) -> np.ma.MaskedArray:
    rounded = np.round(matrix, DIGITS)
    return np.ma.masked_array(rounded, mask=np.eye(len(rounded), dtype=bool))


def similarity_section(similarity: Mapping[str, np.ndarray], found: Sequence[MethodUse]) -> PageSection:
    """Draw `similarity` [E, E] by layer once for each grouping in `found`, or without groups if there is none."""
    pictures = []
    for i, grouping in enumerate(found):
        groups = {layer.name: [group.experts for group in layer.groups] for layer in grouping.layers if layer.merged}
        names = ", ".join(grouping.methods)
        figure = similarity_groups(similarity, groups, names)
        pictures.append(inline(figure, f"similarity-{i}", f"similarity of experts with the groups of {names}"))
    if not pictures:
        pictures.append(inline(similarity_groups(similarity, {}, ""), "similarity", "similarity of experts"))
    return section("Similarity of experts", "similarity.html", pictures=pictures)
