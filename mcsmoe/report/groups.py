"""Figures: how much each expert is used, and how similar the experts of a layer are, with their groups."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from mcsmoe.grouping.plan import Plan
from mcsmoe.report.figure import (
    ANNOTATED,
    EMPTY,
    FAINT,
    INK,
    OFTEN,
    PALETTE,
    SEQUENTIAL,
    STYLE,
    heat_map,
    inline,
    thinned,
)
from mcsmoe.report.section import PageSection, section
from mcsmoe.report.use import FEW, MethodUse

Groups = Sequence[Sequence[int]]
"""Groups of one layer: expert ids, the dominant expert first."""

COLUMNS = 4
DIGITS = 3
"""Values are rounded to this many digits, so that rounding errors of another CPU change no byte of the figure."""


def expert_use(use: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the share of selections of each expert, in percent, with a row for each layer; `use` has [E] by layer."""
    shares = np.array([np.round(values, DIGITS) for values in use.values()]) * 100  # [layers, E]
    layers, experts = shares.shape
    annotated = experts <= ANNOTATED
    height = 0.42 if layers <= ANNOTATED else 0.17
    # A few of many experts are used so much that a linear scale up to their use would leave the others white.
    norm = Normalize(0, shares.max()) if annotated else PowerNorm(0.5, 0, OFTEN * 100 / experts, clip=True)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.8 + 0.42 * min(experts, ANNOTATED), 1.3 + height * layers))
        axes = figure.add_subplot()
        mesh = heat_map(axes, shares, cmap=SEQUENTIAL, norm=norm, edgecolors="white")
        thinned(axes.xaxis, [str(e) for e in range(experts)], ANNOTATED, offset=0.5)
        thinned(axes.yaxis, list(use), 24, offset=0.5)
        axes.set_xlabel("expert")
        axes.set_title("Expert use before merging (% of the layer's tokens)", pad=10)
        if annotated:
            for (layer, expert), share in np.ndenumerate(shares):
                axes.text(expert + 0.5, layer + 0.5, f"{share:.0f}", ha="center", va="center", fontsize=7.5,
                          color="white" if share > 0.5 * shares.max() else INK)  # fmt: skip
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.04, extend="neither" if annotated else "max")
        bar.set_ticks([tick for tick in bar.get_ticks() if tick <= mesh.norm.vmax])  # not in the arrow above the scale
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
    return figure


def similarity_groups(similarity: Mapping[str, np.ndarray], groups: Mapping[str, Groups], title: str) -> Figure:
    """Draw the similarity [E, E] of each layer, experts ordered by group, groups framed, dominant experts in bold.

    The largest group comes first, dropped experts come last. The diagonal is left out, so that the colours span the
    other values. A layer that is not in `groups` was not merged: its experts stay in order, without frames.
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


def _panel(axes: Axes, name: str, matrix: np.ma.MaskedArray, groups: Groups | None, limits: tuple[float, float]) -> Any:
    experts = len(matrix)
    groups = groups and sorted(groups, key=len, reverse=True)
    grouped = [e for group in groups or () for e in group]
    order = grouped + [e for e in range(experts) if e not in grouped]
    annotated = experts <= ANNOTATED
    mesh = heat_map(axes, matrix[np.ix_(order, order)], cmap=SEQUENTIAL, norm=Normalize(*limits))
    axes.set_facecolor(EMPTY)
    axes.set_aspect("equal")
    axes.set_title(name if groups is None else f"{name} · {experts} → {len(groups)}", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(
            np.arange(experts) + 0.5 if annotated else [], labels=[str(e) for e in order] if annotated else []
        )
    axes.tick_params(pad=1.5, labelsize=7)
    starts = np.cumsum([0, *(len(group) for group in groups or ())])
    axes.add_patch(PathPatch(_squares(starts), fill=False, edgecolor=PALETTE[1], linewidth=1.6 if annotated else 0.5,
                             clip_on=False))  # fmt: skip
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for i, label in enumerate(labels[: len(grouped)]):
            if i in starts:
                label.set_fontweight("bold")
            else:
                label.set_color(FAINT)
    return mesh


def _squares(corners: np.ndarray) -> Path:
    """One square on the diagonal from each of `corners` to the next."""
    each = [Path([(a, a), (b, a), (b, b), (a, b), (a, a)], closed=True) for a, b in itertools.pairwise(corners)]
    return Path.make_compound_path(*each)


def _off_diagonal(matrix: np.ndarray) -> np.ma.MaskedArray:
    rounded = np.round(matrix, DIGITS)
    return np.ma.masked_array(rounded, mask=np.eye(len(rounded), dtype=bool))


def excerpt(similarity: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return all layers if these are at most `FEW`, else the first, the middle, the last and the `most_similar` one."""
    names = list(similarity)
    if len(names) <= FEW:
        return dict(similarity)
    likest = most_similar(similarity)
    return {name: similarity[name] for name in names if name in (names[0], names[len(names) // 2], likest, names[-1])}


def most_similar(similarity: Mapping[str, np.ndarray]) -> str:
    """Return the layer whose pairs of experts have the highest mean similarity [E, E]."""
    return max(similarity, key=lambda name: round(float(_off_diagonal(similarity[name]).mean()), DIGITS))


def similarity_section(similarity: Mapping[str, np.ndarray], found: Sequence[MethodUse]) -> PageSection:
    """Draw the `excerpt` of `similarity` [E, E] by layer for each grouping in `found`, or once if there is none."""
    shown = excerpt(similarity)
    pictures = []
    for i, grouping in enumerate(found):
        groups = {layer.name: [group.experts for group in layer.groups] for layer in grouping.layers if layer.merged}
        names = ", ".join(grouping.methods)
        figure = similarity_groups(shown, groups, names)
        pictures.append(inline(figure, f"similarity-{i}", f"similarity of experts with the groups of {names}"))
    if not pictures:
        pictures.append(inline(similarity_groups(shown, {}, ""), "similarity", "similarity of experts"))
    return section(
        "Similarity of experts",
        "similarity.html",
        pictures=pictures,
        layers=len(similarity),
        shown=list(shown),
        likest=most_similar(similarity),
        annotated=max(len(matrix) for matrix in shown.values()) <= ANNOTATED,
    )
