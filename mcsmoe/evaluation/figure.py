"""How every picture of the report looks, and how it becomes the same bytes each time."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK = "#22303c"
FAINT = "#8a97a3"
GRID = "#e6eaee"
EMPTY = "#b9c2ca"
PALETTE = ["#0b7a75", "#d1495b", "#edae49", "#3d5a98", "#8f5ea8", "#5f8d4e", "#a0522d", "#4c9fc9"]
"""Colours of methods, in the order of `params.methods.merge`."""

SEQUENTIAL = LinearSegmentedColormap.from_list(
    "mcsmoe", ["#f7fafa", "#cfe5e3", "#8cc3bf", "#3f938f", "#0b5f5c", "#06302f"]
)
"""From little (nearly the page's white) to much."""

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
    """The colour of each method, the same in every picture that is given the same list."""
    return {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}


def svg(figure: Figure) -> bytes:
    """An SVG whose bytes depend on the figure alone: ids from a fixed salt, no date, no version."""
    drawn = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            drawn,
            format="svg",
            dpi=200,  # of what is drawn as pixels
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
