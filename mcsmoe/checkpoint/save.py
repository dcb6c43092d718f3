"""Saving a model in memory as a checkpoint directory, and comparing it with a checkpoint."""

import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.output import check_room_for, write_json
from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS, Checkpoint, read_json
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, write_safetensors, written_pieces
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


MODELING = Path(__file__).parent.parent / "modeling"
RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)


def save_model(model: Any, tokenizer: Any, directory: Path, beside: Published | None = None) -> Written:
    """Write weights, configurations and tokenizer of a transformers model; equal models give equal bytes.

    Returns content hashes of the model in memory, to verify the written files. Classes of ours write their remote
    code too. Layers for multi-token prediction in `beside`, the checkpoint that it was made of, are written, too.
    Call it inside `atomic_directory` to get all files or none.
    Raises `DiskFullError` before anything is written.
    """
    check_room_for(model, directory / WEIGHTS)
    if merged_layers(model.config) is None:
        # Else a model that came with the names it has in memory would be saved with them.
        vars(model).pop("_weight_conversions", None)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    written = written_pieces(held(model, Checkpoint(directory).names()))
    if beside is not None and beside.mtp:
        written |= add_tensors(directory, beside, beside.mtp)
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


def write_remote_code(config: dict[str, Any], directory: Path) -> None:
    """Copy the files of remote code that the `auto_map` of a config.json names, and the files that they import.

    Files that are not ours are left out.
    """
    named = {str(reference).split(".")[0] for reference in config.get("auto_map", {}).values()}
    todo = {name for name in named if (MODELING / f"{name}.py").is_file()}
    done: set[str] = set()
    while todo:
        name = todo.pop()
        shutil.copyfile(MODELING / f"{name}.py", directory / f"{name}.py")
        done.add(name)
        todo |= set(RELATIVE_IMPORT.findall((MODELING / f"{name}.py").read_text())) - done
