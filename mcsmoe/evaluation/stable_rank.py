"""How many dimensions an expert's weights really use: the paper's claim that merging lowers it can be seen."""

from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from mcsmoe.families import Family, MoELayer, TensorSource
from mcsmoe.report.figure import FAINT, PALETTE, STYLE

MARKERS = {"before": ("o", FAINT), "merged": ("s", PALETTE[1]), "distilled": ("D", PALETTE[0])}
"""Marker and colour of the experts of each moment."""

Ranks = Mapping[str, float]
"""Layer → mean stable rank over its experts and their weights."""


def stable_rank(weight: Tensor) -> Tensor:
    """‖W‖²_F / ‖W‖²_2 of each matrix of weight [..., out, in] → [...] float64 (paper §3.3).

    Between 1 and the rank; small where few directions carry the weight. 0 for a matrix of zeros.
    """
    values = torch.linalg.svdvals(weight.double()).square()  # [..., min(out, in)], largest first
    return torch.where(values[..., 0] > 0, values.sum(-1) / values[..., 0].clamp(min=1e-300), 0.0)


def stock_ranks(source: TensorSource, layers: Sequence[MoELayer]) -> dict[str, float]:
    """Mean stable rank of the experts of each layer of a stock checkpoint, one tensor in memory at a time."""
    return {
        layer.name: _mean(layer.read(source, e, name) for e in range(layer.experts) for name in weights(layer))
        for layer in layers
    }


def merged_ranks(source: TensorSource, family: Family, layers: Sequence[MoELayer]) -> dict[str, float]:
    """Mean stable rank of the experts of each layer of a merged checkpoint, one stack in memory at a time."""
    return {
        layer.name: _mean(source.tensor(family.merged_tensor(layer, name)) for name in weights(layer))
        for layer in layers
    }


def weights(layer: MoELayer) -> list[str]:
    """Names of the matrices of an expert."""
    return [name for name, role in layer.layout.items() if role.is_weight]


def _mean(tensors: Iterator[Tensor]) -> float:
    return float(torch.cat([stable_rank(tensor).flatten() for tensor in tensors]).mean())


def stable_rank_figure(method: str, moments: Mapping[str, Ranks]) -> Figure:
    """Mean stable rank of each layer by moment (`before`, `merged`, `distilled`)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.0))
        axes = figure.add_subplot()
        for moment, values in moments.items():
            marker, colour = MARKERS[moment]
            # Rounded, so that another CPU draws the same bytes.
            heights = [round(value, 2) for value in values.values()]
            axes.plot(list(values), heights, marker, color=colour, label=moment, markersize=6, linestyle="-",
                      linewidth=1.2, markeredgecolor="white")  # fmt: skip
        axes.set_title(f"{method}: stable rank of experts, layer by layer", pad=10)
        axes.set_ylabel("mean over experts and weights")
        axes.grid(axis="y", linewidth=0.8)
        axes.margins(y=0.08)  # marks at the top are whole
        axes.set_ylim(bottom=0)
        axes.tick_params(axis="x", rotation=35, length=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure
