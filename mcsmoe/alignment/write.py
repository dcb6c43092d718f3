"""A checkpoint whose experts' hidden neurons are reordered, written expert by expert."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from mcsmoe.alignment.apply import permute_tensor
from mcsmoe.architectures.layer import MoELayer
from mcsmoe.architectures.shares import expert_shares
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.piece import Piece
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.save import write_remote_code
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.writer import TensorSpec
from mcsmoe.checkpoint.written import Written

Orders = Callable[[MoELayer], Mapping[int, Tensor]]
"""layer → the new order [f] of the hidden neurons of its experts; experts that are not there keep theirs."""


def write_permuted(
    source: Checkpoint, layers: Iterable[MoELayer], orders: Orders, directory: Path, notes: Path | None = None
) -> Written:
    """Write `source` with `orders` applied into `directory`; a layer's are asked for when it is written.

    Peak memory is that of `orders`, or a tensor of `source` (of a stack: one expert's entry) and its copy: no more
    for more layers. Gives what was written; for shards and `notes` see `write_parts`.
    """
    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    parts = []
    for layer in layers:
        held = dict.fromkeys(share.tensor for share in expert_shares(layer, layer.experts))
        ours = {name: specs.pop(name) for name in held}
        parts.append(Part(layer.name, ours, partial(_permuted, source, layer, orders)))
    written = write_parts(directory, [*parts, *other_parts(specs, source.tensor)], "permute", notes)
    shutil.copyfile(source.directory / "config.json", directory / "config.json")
    write_remote_code(source.config, directory)
    copy_companions(source.directory, directory)
    return written


def _permuted(source: Checkpoint, layer: MoELayer, orders: Orders) -> Iterator[Piece]:
    found = orders(layer)
    for tensor, entry, e, names in expert_shares(layer, layer.experts):
        value = source.tensor(tensor) if entry is None else source.part(tensor, entry)
        for name in names if e in found else ():
            ours = layer.places[name].view(value)
            ours.copy_(permute_tensor(ours, name, layer.layout, found[e]))
        yield Piece(tensor, entry, value)
