"""Saving a model in memory as a checkpoint directory, and comparing it with a checkpoint."""

import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.output import check_room_for
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.writer import Piece, Written, written_pieces
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


def save_model(model: Any, tokenizer: Any, directory: Path) -> Written:
    """Write weights, configurations and tokenizer of a transformers model; equal models give equal bytes.

    Returns content hashes of the model in memory, to verify the written files. Classes of ours write their remote
    code too. Call it inside `atomic_directory` to get all files or none.
    Raises `DiskFullError` before anything is written.
    """
    check_room_for(model, directory / WEIGHTS)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return written_pieces(held(model, Checkpoint(directory).names()))


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
