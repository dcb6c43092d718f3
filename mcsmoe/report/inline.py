"""A matplotlib figure as part of the page: its ids are its own, its colours follow the page's theme."""

import re

from markupsafe import Markup
from matplotlib.figure import Figure

from mcsmoe.evaluation.figure import FAINT, GRID, INK, PALETTE, svg

THEMED = {"#ffffff": "--paper", INK: "--ink", FAINT: "--faint", GRID: "--line"}
THEMED |= {colour: f"--c{i}" for i, colour in enumerate(PALETTE)}
"""Colours of figures that page.css defines for light and dark."""


def inline(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an `<svg>` that scales with its column; `label` is what it is called where it is not seen.

    `name` is unlike that of any other figure of the page.
    """
    drawn = svg(figure).decode()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"\s*<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawn)
    # Coordinates are points: hundredths are finer than any screen.
    drawn = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), drawn)
    drawn = re.sub("|".join(THEMED), lambda colour: f"var({THEMED[colour[0]]})", drawn)
    width = re.search(r'viewBox="0 0 ([\d.]+)', drawn)
    assert width is not None
    head = Markup('<svg role="img" aria-label="{}" style="--width: {}pt"').format(label, round(float(width[1])))
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
    return head + Markup(drawn.removeprefix("<svg").strip("\n"))
