"""Saving a model in memory as a checkpoint directory, and comparing it with a checkpoint."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.companions import complete, copy_companions
from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.output import check_room_for, write_json
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, known, write_safetensors, written_pieces
from mcsmoe.errors import CheckpointError
from mcsmoe.families import contents, family_of, merged_layers
from mcsmoe.families.experts import InMemory, expert_shares, share_in_memory


def held(model: Any, names: Collection[str], within: str = "") -> Iterator[Piece]:
    """The values of `model` for the tensors `names` of its checkpoint, in the layout on disk, one expert at a time.

    Left out are tensors that loading ignores, those outside the module path `within`, and those that have no memory,
    as in blocks of a streamed model. Raises `CheckpointError` for any that the model does not have.
    """
    source, family = InMemory(model), family_of(model.config)
    layers = family.layers(model.config) if merged_layers(model.config) is None else []

    def there(name: str) -> bool:
        return name.startswith(within) and not source.tensor(name).is_meta

    for layer in layers:
        for tensor, entry, e, kinds in expert_shares(layer, layer.experts):
            if there(layer.in_memory[kinds[0]].name(e)):
                yield Piece(tensor, entry, share_in_memory(layer, kinds, source, e))
    for name, ours in contents(model.config, names, "checkpoint").in_memory.items():
        if there(ours):
            yield Piece(name, None, source.tensor(ours).detach())


def check_held(model: Any, checkpoint: Checkpoint, written: Written, within: str = "") -> None:
    """Raise `CheckpointError`, naming the first tensor whose values differ between the model and its checkpoint.

    The checkpoint has passed `check_inventory`, so that values whose hashes are in `written` need not be read again.
    Others are cast to the model's dtype before they are compared. `within` and what is left out: see `held`.
    """
    for piece in held(model, checkpoint.names(), within):
        name, entry, value = piece
        if known(written, piece):
            continue
        found = checkpoint.tensor(name) if entry is None else checkpoint.part(name, entry)
        if not torch.equal(found.to(value.dtype), value):
            place = name if entry is None else f"{name}[{entry}]"
            raise CheckpointError(f"{checkpoint.directory}: reloaded: {place} is not what the file holds")


def save_model(
    model: Any, tokenizer: Any, directory: Path, source: Path | None = None, beside: Published | None = None
) -> Written:
    """Write weights and configurations of a transformers model; equal models give equal bytes.

    With them go the companions of the checkpoint `source` that it was made of, its tokenizer among them as it is on
    disk; only without a `source` the `tokenizer` is saved. Classes of ours write their remote code too. Layers for
    multi-token prediction in `beside`, the tensors of that checkpoint, are written, too. Returns content hashes of the
    model in memory, to verify the written files. Call it inside `atomic_directory` to get all files or none.
    Raises `DiskFullError` before anything is written.
    """
    check_room_for(model, directory / WEIGHTS)
    if source is not None:
        copy_companions(source, directory)
    else:
        tokenizer.save_pretrained(directory)
    if merged_layers(model.config) is None:
        # Else a model that came with the names it has in memory would be saved with them.
        vars(model).pop("_weight_conversions", None)
    model.save_pretrained(directory)
    written = written_pieces(held(model, Checkpoint(directory).names()))
    if beside is not None and beside.mtp:
        written |= add_tensors(directory, beside, beside.mtp)
    complete(directory, source)
    return written


def add_tensors(directory: Path, source: Checkpoint, names: Collection[str]) -> Written:
    """Add tensors `names` of `source` to the weights in `directory`, in a shard of their own."""
    before, shard = Checkpoint(directory), "model-mtp.safetensors"
    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in names}
    written = write_safetensors(directory / shard, specs, (Piece(name, None, source.tensor(name)) for name in names))
    if (directory / WEIGHTS).is_file():
        first = "model-00001-of-00001.safetensors"
        (directory / WEIGHTS).rename(directory / first)
        weight_map = dict.fromkeys(before.names(), first)
    else:
        weight_map = read_json(directory / INDEX)["weight_map"]
    specs |= {name: TensorSpec(before.dtype(name), before.shape(name)) for name in before.names()}
    total = sum(spec.size_bytes for spec in specs.values())
    weight_map |= dict.fromkeys(names, shard)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return written
