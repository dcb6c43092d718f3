"""The stock checkpoint as a directory: weights, configuration, tokenizer."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.architectures.layer import MoELayer
from mcsmoe.checkpoint.companions import copy_companions
from mcsmoe.checkpoint.reader import WEIGHTS
from mcsmoe.checkpoint.save import write_remote_code
from mcsmoe.checkpoint.writer import TensorSpec, write_safetensors
from mcsmoe.export.config import with_expert_count
from mcsmoe.export.mapped import Mapped


def write_stock(mapped: Mapped, routers: Mapping[str, Tensor], directory: Path) -> None:
    """Write the mapped checkpoint in the names and the layout of its source into the empty `directory`.

    `routers` are tensors that differ from the mapped checkpoint's, by their name there. One expert's tensor is in
    memory at a time. Raises `CheckpointError` for values that are not finite, `DiskFullError` without room.
    """
    source, checkpoint, family = mapped.source, mapped.checkpoint, mapped.family
    text = (source.directory / "config.json").read_bytes().decode()
    counts = (mapped.layers[0].experts, mapped.kept)
    config = with_expert_count(text, family.expert_counts, *counts, older=family.older_count)
    specs = {}
    for tensor, name in mapped.others.items():
        shape = tuple(routers[name].shape) if name in routers else checkpoint.shape(name)
        specs[tensor] = TensorSpec(checkpoint.dtype(name), shape)
    holders: dict[str, list[tuple[MoELayer, int, str]]] = defaultdict(list)
    """What each tensor holds of which expert, expert by expert."""
    for layer in mapped.layers:
        for k in range(mapped.kept):
            for name, place in layer.places.items():
                tensor = place.name(k)
                shape = source.shape(tensor)
                dtype = checkpoint.dtype(family.merged_tensor(layer, name))
                rows = shape[0] // layer.experts * mapped.kept if place.stacked else shape[0]
                specs[tensor] = TensorSpec(dtype, (rows, *shape[1:]))
                holders[tensor].append((layer, k, name))

    def chunks(tensor: str) -> Iterator[Tensor]:
        held = holders.get(tensor)
        if held is None:
            name = mapped.others[tensor]
            yield routers[name] if name in routers else checkpoint.tensor(name)
            return
        layer, _, first = held[0]
        place, (rows, *shape) = layer.places[first], specs[tensor].shape
        if place.stacked:
            rows //= mapped.kept
        for k in dict.fromkeys(k for _, k, _ in held):
            # What nobody fills would be refused by the writer.
            chunk = torch.full((rows, *shape), torch.nan, dtype=specs[tensor].dtype)
            share = place.share(chunk, 0)
            for name in (name for _, owner, name in held if owner == k):
                layer.places[name].view(share).copy_(checkpoint.part(family.merged_tensor(layer, name), k))
            yield chunk

    write_safetensors(directory / WEIGHTS, specs, chunks)
    (directory / "config.json").write_bytes(config.encode())
    write_remote_code(source.config, directory)
    copy_companions(source.directory, directory)
