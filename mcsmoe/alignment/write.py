"""A checkpoint whose experts' hidden neurons are reordered, written tensor by tensor."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from mcsmoe.alignment.apply import permute_tensor
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.save import write_remote_code
from mcsmoe.checkpoint.writer import TensorSpec, write_safetensors

Orders = Mapping[tuple[str, int], Tensor]
"""(layer name, expert) → the new order of its hidden neurons [f]; experts that are not there keep theirs."""


def write_permuted(source: Checkpoint, layers: Iterable[MoELayer], orders: Orders, directory: Path) -> None:
    """Write `source` with `orders` applied into the empty `directory`; one expert's tensor in memory at a time."""
    holders: dict[str, list[tuple[MoELayer, int, str]]] = defaultdict(list)
    """What each tensor holds of which expert, expert by expert."""
    for layer in layers:
        for e in range(layer.experts):
            for name, place in layer.places.items():
                holders[place.name(e)].append((layer, e, name))

    def chunks(tensor: str) -> Iterator[Tensor]:
        held = holders.get(tensor)
        if held is None:
            yield source.tensor(tensor)
            return
        layer, _, first = held[0]
        place = layer.places[first]
        for e in dict.fromkeys(e for _, e, _ in held):
            share = source.part(tensor, place.index(e)) if place.stacked else source.tensor(tensor)
            for name in (name for _, owner, name in held if owner == e and (layer.name, e) in orders):
                ours = layer.places[name].view(share)
                ours.copy_(permute_tensor(ours, name, layer.layout, orders[layer.name, e]))
            yield share

    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    write_safetensors(directory / WEIGHTS, specs, chunks)
    shutil.copyfile(source.directory / "config.json", directory / "config.json")
    write_remote_code(source.config, directory)
    copy_companions(source.directory, directory)
