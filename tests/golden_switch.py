"""The reference implementation's small Switch and what it measured; it counts every position, padding too."""

import json
from functools import cache
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.architectures.layer import MoELayer
from mcsmoe.architectures.registry import sparse_layers
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.routing.collect import collect
from mcsmoe.routing.statistics import RoutingStatistics
from mcsmoe.routing.watch import every_token
from tests.shared import GOLDEN

SWITCH = GOLDEN / "switch"


def golden_checkpoint() -> Checkpoint:
    """The full model."""
    return Checkpoint(SWITCH)


def golden_layers() -> list[MoELayer]:
    """Its sparse layers."""
    return sparse_layers(golden_checkpoint().config)


def golden_batch() -> dict[str, Tensor]:
    """The batch that was measured; the decoder's input is what labels give when shifted."""
    return load_file(SWITCH / "batch.safetensors")


@cache
def golden_statistics() -> RoutingStatistics:
    """Our statistics of that batch, counting what the reference counts."""
    from mcsmoe.architectures.registry import family_of

    model = load_model(SWITCH)
    family = family_of(model.config)
    return collect(model, family, golden_layers(), [golden_batch()], masks=every_token)


def golden_groupings() -> dict[str, Any]:
    """`<base>/global/<k>/<layers>` → labels, core."""
    values: dict[str, Any] = json.loads((SWITCH / "groupings.json").read_text())
    return values
