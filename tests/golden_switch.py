"""The reference implementation's small Switch and what it measured; it counts every position, padding too."""

import json
from atexit import register
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.calibration.watch import real_tokens
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
    with patch("mcsmoe.calibration.watch.real_tokens", every_token):
        statistics = collect(model, family, layers, batches, also=["outputs", "pair-errors"])
        statistics.measured = measure_correlations(model, family, layers, batches)
    return statistics


def every_token(batch: Mapping[str, Tensor], causal: bool) -> dict[str, Tensor]:
    """All positions: the model still sees which are padding."""
    return {stack: torch.ones_like(mask) for stack, mask in real_tokens(batch, causal).items()}


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
