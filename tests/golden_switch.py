"""The reference implementation's small Switch and what it measured; it counts every position, padding too."""

import json
from atexit import register
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.calibration.watch import every_token
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.families import MoELayer, family_of, sparse_layers
from mcsmoe.similarity.correlation import measure_correlations
from mcsmoe.similarity.evidence import Evidence
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
    """Our statistics of that batch, with all that similarities need, counting what the reference counts."""
    model, layers, batches = load_model(SWITCH), golden_layers(), [golden_batch()]
    family = family_of(model.config)
    statistics = collect(model, family, layers, batches, also=["outputs", "pair-errors"], masks=every_token)
    statistics.measured = measure_correlations(model, family, layers, batches, masks=every_token)
    return statistics


@cache
def golden_gradients() -> Gradients:
    """Our gradients of the rows that the reference took them on, the first 16."""
    directory = Path(mkdtemp())
    register(rmtree, directory)
    rows = {name: value[:16] for name, value in golden_batch().items()}
    write_gradients(directory, load_model(SWITCH), golden_layers(), [rows], ["gradients"])
    return Gradients(directory)


def golden_evidence(layer: MoELayer) -> Evidence:
    """What our similarities look at of one layer."""
    statistics = golden_statistics()
    measured = statistics.measured[layer.name]
    return Evidence(layer, statistics[layer.name], golden_checkpoint(), golden_gradients(), measured)


def golden_groupings() -> dict[str, Any]:
    """`<base>/global/<k>/<layers>` → labels, core."""
    values: dict[str, Any] = json.loads((SWITCH / "groupings.json").read_text())
    return values
