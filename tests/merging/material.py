"""What merging may draw on, for rules that draw on little of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.observer import LayerTokens
from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.families import MoELayer
from mcsmoe.merging.apply import Material


def no_tokens(layer: MoELayer) -> NoReturn:
    """Fail: who looks at weights and frequencies only must not cost a forward pass."""
    raise AssertionError("nobody needs tokens")


def nothing_measured(
    layers: Sequence[MoELayer],
    tokens: Callable[[MoELayer], LayerTokens] = no_tokens,
    directory: Path = Path("nowhere"),
    seed: int = 0,
) -> Material:
    """Statistics of no token at all, tokens and gradients as given."""
    sums = {layer.name: LayerStatistics.zeros(layer.experts, layer.d_model) for layer in layers}
    return Material(RoutingStatistics(sums), Gradients(directory), tokens, seed)
