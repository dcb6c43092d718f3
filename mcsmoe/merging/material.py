"""What merging may draw on beside the weights: statistics, gradients, and tokens looked at when asked for."""

from collections.abc import Callable
from dataclasses import dataclass

from mcsmoe.alignment.activations import LayerTokens
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.routing.gradients import Gradients
from mcsmoe.routing.statistics import RoutingStatistics


@dataclass(frozen=True)
class Material:
    """What was measured of the checkpoint; `tokens` may need a forward pass over the calibration sample."""

    statistics: RoutingStatistics
    gradients: Gradients
    tokens: Callable[[MoELayer], LayerTokens]
    seed: int = 0
