"""Figure: which experts a method keeps and which it merges away or drops, over all layers, by use."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.colors import Colormap, LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mcsmoe.report.figure import OFTEN, SEQUENTIAL, STYLE, heat_map, thinned

COLOURS: dict[str, Colormap] = {
    "kept": SEQUENTIAL,
    "joined": LinearSegmentedColormap.from_list("joined", ["#fdf6f7", "#f0a9b4", "#d1495b", "#7d1e2e"]),
    "dropped": LinearSegmentedColormap.from_list("dropped", ["#f4f5f6", "#b9c2ca", "#6b7a87", "#22303c"]),
}
"""What became of an expert → its colours, from little use to much."""

LABELS = {"kept": "kept", "joined": "merged into another", "dropped": "dropped"}


def lost_figure(layers: Mapping[str, Sequence[tuple[float, str]]]) -> Figure:
    """Draw a row for each layer and a cell for each expert, the most used first: its colour tells what became of it.

    `layers` has (share of the layer's selections, key of `COLOURS`) of every expert, by layer.
    """
    rows = [sorted(((round(share, 4), state) for share, state in row), reverse=True) for row in layers.values()]
    norm = PowerNorm(0.5, 0, OFTEN / max(map(len, rows)), clip=True)
    image = np.zeros((len(rows), max(map(len, rows)), 4))  # transparent where a layer has fewer experts
    for i, row in enumerate(rows):
        scaled = np.asarray(norm([share for share, _ in row]))
        for state, colours in COLOURS.items():
            here = np.array([each == state for _, each in row])
            image[i, : len(row)][here] = colours(scaled[here])
    states = [state for state in COLOURS if any(state == each for row in rows for _, each in row)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 1.1 + 0.12 * max(len(rows), 6)))
        axes = figure.add_subplot()
        heat_map(axes, image)
        thinned(axes.xaxis, [str(j + 1) for j in range(image.shape[1])], 16, offset=0.5)
        thinned(axes.yaxis, list(layers), 24, offset=0.5)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("experts of a layer by use, the most used first")
        handles = [Patch(color=COLOURS[state](0.6), label=LABELS[state]) for state in states]
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.3, handlelength=1
        )
    return figure
