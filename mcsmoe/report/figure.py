"""The style of all figures, and how they are written: as SVG files and as part of the page."""

import re
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK = "#22303c"
FAINT = "#8a97a3"
GRID = "#e6eaee"
EMPTY = "#b9c2ca"
PALETTE = ["#0b7a75", "#d1495b", "#edae49", "#3d5a98", "#8f5ea8", "#5f8d4e", "#a0522d", "#4c9fc9"]
"""Colours of methods, in the order of `params.methods.merge`."""

SEQUENTIAL = LinearSegmentedColormap.from_list(
    "mcsmoe", ["#f7fafa", "#cfe5e3", "#8cc3bf", "#3f938f", "#0b5f5c", "#06302f"], N=64
)
"""Colour map from small (nearly the page's white) to large values; few colours make small images."""

ANNOTATED = 16
"""With at most this many experts, each of a layer's experts is drawn for itself, with its number."""

OFTEN = 4
"""Experts of a large layer that are chosen this many times as often as the mean are as dark as those above them."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.hashsalt": "mcsmoe",
}


def colours(methods: Sequence[str]) -> dict[str, str]:
    """The colour of each method; the same list gives the same colours in every figure."""
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def heat_map(axes: Axes, values: np.ndarray, *, edgecolors: str = "none", **how: Any) -> Any:
    """Draw `values` [rows, columns], or colours [rows, columns, 4]; row 0 is on top, a cell is one unit wide and high.

    Cells of wide rows become the pixels of an image: as vectors, they would take megabytes.
    """
    rows, columns = values.shape[:2]
    drawn: Any
    if columns <= ANNOTATED:
        drawn = axes.pcolormesh(values, edgecolors=edgecolors, linewidth=1.2, **how)
        axes.invert_yaxis()
    else:
        drawn = axes.imshow(values, extent=(0, columns, rows, 0), aspect="auto", interpolation="none", **how)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return drawn


def thinned(axis: Axis, names: Sequence[str], most: int, *, offset: float = 0.0) -> None:
    """Label positions `offset`, `offset` + 1, … with `names`; if these are more than `most`, every 2nd, 4th or 8th …"""
    step = 1
    while len(names) > most * step:
        step *= 2
    axis.set_ticks(np.arange(0, len(names), step) + offset, labels=list(names[::step]))


def svg(figure: Figure, *, fonttype: str = "path") -> bytes:
    """Return the figure as SVG; its bytes depend on the figure alone: ids have a fixed salt, no date, no version.

    `fonttype` "path" draws letters as outlines, which look the same everywhere; "none" writes text.
    """
    drawn = BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": fonttype}):
        figure.savefig(
            drawn,
            format="svg",
            dpi=200,  # of the rasterised parts
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Date": None, "Creator": None},
        )
    return drawn.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write `svg` of the figure to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(svg(figure))


THEMED = {"#ffffff": "--paper", INK: "--ink", FAINT: "--faint", GRID: "--line"}
THEMED |= {colour: f"--c{i}" for i, colour in enumerate(PALETTE)}
"""Colours of figures → variables of page.css, which has their values for light and dark mode."""


def inline(figure: Figure, name: str, label: str) -> Markup:
    """Return the figure as an `<svg>` that scales with its column; `label` describes it to screen readers.

    `name` must be unique on the page, because it prefixes the ids inside the figure. Text is in the page's font.
    """
    drawn = svg(figure, fonttype="none").decode()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = drawn.replace(" font-family: 'DejaVu Sans';", "")
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    # Coordinates are in points; a hundredth is finer than any screen shows.
    drawn = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), drawn)
    drawn = re.sub("|".join(THEMED), lambda colour: f"var({THEMED[colour[0]]})", drawn)
    width = re.search(r'viewBox="0 0 ([\d.]+)', drawn)
    assert width is not None
    head = Markup('<svg role="img" aria-label="{}" style="--width: {}pt"').format(label, round(float(width[1])))
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
    return head + Markup(drawn.removeprefix("<svg").strip("\n"))
