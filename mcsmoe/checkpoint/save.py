"""Saving a model in memory as a checkpoint directory, and comparing it with a checkpoint."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcsmoe.checkpoint.companions import complete, copy_companions
from mcsmoe.checkpoint.output import check_room_for
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.writer import Piece, Written, written_pieces
from mcsmoe.errors import CheckpointError
from mcsmoe.families import MoELayer, TensorSource, family_of, merged_layers
from mcsmoe.families.experts import InMemory, expert_shares


def held(model: Any, names: Collection[str], within: str = "") -> Iterator[Piece]:
    """The values of `model` for the tensors `names` of its checkpoint, in the layout on disk, one expert at a time.

    Left out are tensors that loading ignores, those outside the module path `within`, and those that have no memory,
    as in blocks of a streamed model. Raises `CheckpointError` for any that the model does not have.
    """
    source, family = InMemory(model), family_of(model.config)
    layers = family.layers(model.config) if merged_layers(model.config) is None else []
    inside = set()

    def there(name: str) -> bool:
        return name.startswith(within) and not source.tensor(name).is_meta

    for layer in layers:
        for tensor, entry, e, kinds in expert_shares(layer, layer.experts):
            inside.add(tensor)
            if there(layer.in_memory[kinds[0]].name(e)):
                yield Piece(tensor, entry, _share(layer, kinds, source, e))
    others = [name for name in names if name not in inside]
    in_memory = family.merged_names(model.config, others) if layers else {name: name for name in others}
    for name, ours in in_memory.items():
        if there(ours):
            yield Piece(name, None, source.tensor(ours).detach())


def check_held(model: Any, checkpoint: Checkpoint, within: str = "") -> None:
    """Raise `CheckpointError`, naming the first tensor whose values differ between the model and its checkpoint.

    Values on disk are cast to the model's dtype before they are compared. Reads every tensor once. `within` and what
    is left out: see `held`.
    """
    for name, entry, value in held(model, checkpoint.names(), within):
        found = checkpoint.tensor(name) if entry is None else checkpoint.part(name, entry)
        if not torch.equal(found.to(value.dtype), value):
            place = name if entry is None else f"{name}[{entry}]"
            raise CheckpointError(f"{checkpoint.directory}: reloaded: {place} is not what the file holds")


def _share(layer: MoELayer, kinds: Collection[str], source: TensorSource, expert: int) -> Tensor:
    """One expert's share of a tensor on disk, put together from its tensors `kinds` (such as gate and up)."""
    values = {kind: layer.in_memory[kind].read(source, expert).detach() for kind in kinds}
    first, place = next(iter(values.values())), layer.places[next(iter(kinds))]
    shape = (sum(len(value) for value in values.values()), *first.shape[1:])
    share = first.new_empty(shape[::-1] if place.transposed else shape)
    for kind, value in values.items():
        layer.places[kind].view(share).copy_(value)
    return share


def save_model(model: Any, tokenizer: Any, directory: Path, source: Path | None = None) -> Written:
    """Write weights and configurations of a transformers model; equal models give equal bytes.

    With them go the companions of the checkpoint `source` that it was made of, its tokenizer among them as it is on
    disk; only without a `source` the `tokenizer` is saved. Classes of ours write their remote code too. Returns content
    hashes of the model in memory, to verify the written files. Call it inside `atomic_directory` to get all files or
    none.
    Raises `DiskFullError` before anything is written.
    """
    check_room_for(model, directory / WEIGHTS)
    if source is not None:
        copy_companions(source, directory)
    else:
        tokenizer.save_pretrained(directory)
    model.save_pretrained(directory)
    complete(directory, source)
    return written_pieces(held(model, Checkpoint(directory).names()))
