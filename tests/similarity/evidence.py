"""All that similarities may look at, collected on a small model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.watch import Batch
from mcsmoe.families import TensorSource, family_of
from mcsmoe.similarity.correlation import measure_correlations
from mcsmoe.similarity.evidence import Evidence


class InMemory(TensorSource):
    """The tensors of a model, read as those of a checkpoint are."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def tensor(self, name: str) -> Tensor:
        value: Tensor = self.model.get_parameter(name).detach()
        return value


def whole_evidence(model: Any, batches: Sequence[Batch], directory: Path) -> list[Evidence]:
    """The evidence of every layer, with everything collected; gradients are written into `directory`."""
    family = family_of(model.config)
    layers = family.layers(model.config)
    statistics = collect(model, family, layers, batches, also=["outputs", "pair-errors"])
    measured = measure_correlations(model, family, layers, batches)
    write_gradients(directory, model, layers, batches, ["gradients"])
    return [
        Evidence(layer, statistics[layer.name], InMemory(model), Gradients(directory), measured[layer.name])
        for layer in layers
    ]


def bare_evidence(evidence: Evidence) -> Evidence:
    """The same layer where `collect.also` listed nothing."""
    kept = {k: v for k, v in evidence.statistics.tensors().items() if k not in OPTIONAL}
    return Evidence(evidence.layer, type(evidence.statistics)(**kept), evidence.source)


OPTIONAL = {"all_outputs", "output_gram", "pair_errors"}
