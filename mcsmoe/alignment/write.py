"""A checkpoint whose experts' hidden neurons are reordered, written tensor by tensor."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from mcsmoe.alignment.apply import permute_tensor
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.writer import TensorSpec, write_safetensors

Orders = Mapping[tuple[str, int], Tensor]
"""(layer name, expert) → the new order of its hidden neurons [f]; experts that are not there keep theirs."""


def write_permuted(source: Checkpoint, layers: Iterable[MoELayer], orders: Orders, directory: Path) -> None:
    """Write `source` with `orders` applied into the empty `directory`; one tensor in memory at a time."""
    places = {
        layer.tensor(e, name): (layer, e, name)
        for layer in layers
        for e in range(layer.experts)
        if (layer.name, e) in orders
        for name in layer.layout
    }

    def chunks(tensor: str) -> list[Tensor]:
        value = source.tensor(tensor)
        if tensor not in places:
            return [value]
        layer, e, name = places[tensor]
        return [permute_tensor(value, name, layer.layout, orders[layer.name, e])]

    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    write_safetensors(directory / WEIGHTS, specs, chunks)
    shutil.copyfile(source.directory / "config.json", directory / "config.json")
    copy_companions(source.directory, directory)
