"""The stock checkpoint as a directory: weights, configuration, tokenizer."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.architectures.layer import MoELayer
from mcsmoe.architectures.shares import expert_shares
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.piece import Piece
from mcsmoe.checkpoint.save import write_remote_code
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.writer import TensorSpec, piece_shape
from mcsmoe.checkpoint.written import Written
from mcsmoe.export.config import with_expert_count
from mcsmoe.export.mapped import Mapped


def write_stock(mapped: Mapped, routers: Mapping[str, Tensor], directory: Path, notes: Path | None = None) -> Written:
    """Write the mapped checkpoint in the names and the layout of its source into `directory`.

    `routers` are tensors that differ from the mapped checkpoint's, by their name there. Peak memory is a tensor of
    one expert and its copy: no more for more layers. Gives what was written; for shards and `notes` see `write_parts`.
    Raises `CheckpointError` for values that are not finite, `DiskFullError` without room.
    """
    source, checkpoint, family = mapped.source, mapped.checkpoint, mapped.family
    text = (source.directory / "config.json").read_bytes().decode()
    counts = (mapped.layers[0].experts, mapped.kept)
    config = with_expert_count(text, family.expert_counts, *counts, older=family.older_count)
    parts = []
    for layer in mapped.layers:
        specs = {}
        for tensor, entry, _, names in expert_shares(layer, mapped.kept):
            shape = source.shape(tensor)
            dtype = checkpoint.dtype(family.merged_tensor(layer, names[0]))
            rows = shape[0] if entry is None else shape[0] // layer.experts * mapped.kept
            specs[tensor] = TensorSpec(dtype, (rows, *shape[1:]))
        parts.append(Part(layer.name, specs, partial(_shares, mapped, layer, specs)))

    def other(tensor: str) -> Tensor:
        name = mapped.others[tensor]
        return routers[name] if name in routers else checkpoint.tensor(name)

    others = {}
    for tensor, name in mapped.others.items():
        shape = tuple(routers[name].shape) if name in routers else checkpoint.shape(name)
        others[tensor] = TensorSpec(checkpoint.dtype(name), shape)
    written = write_parts(directory, [*parts, *other_parts(others, other)], "export", notes)
    (directory / "config.json").write_bytes(config.encode())
    write_remote_code(source.config, directory)
    copy_companions(source.directory, directory)
    return written


def _shares(mapped: Mapped, layer: MoELayer, specs: Mapping[str, TensorSpec]) -> Iterator[Piece]:
    for tensor, entry, k, names in expert_shares(layer, mapped.kept):
        spec = specs[tensor]
        # What nobody fills would be refused by the writer.
        value = torch.full(piece_shape(spec, entry), torch.nan, dtype=spec.dtype)
        for name in names:
            ours = mapped.checkpoint.part(mapped.family.merged_tensor(layer, name), k)
            layer.places[name].view(value).copy_(ours)
        yield Piece(tensor, entry, value)
