"""Saving a model in memory as a checkpoint directory."""

import shutil
from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.room import check_room_for

MODELING = Path(__file__).parent.parent / "modeling"


def save_model(model: Any, tokenizer: Any, directory: Path) -> Checkpoint:
    """Write weights, configurations and tokenizer of a transformers model; equal models give equal bytes.

    A class of ours brings its remote code along. Write inside `atomic_directory` to get all or nothing.
    Raises `DiskFullError` before anything is written.
    """
    check_room_for(model, directory / WEIGHTS)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return Checkpoint(directory)


def write_remote_code(config: dict[str, Any], directory: Path) -> None:
    """Put the files that `auto_map` of a config.json names beside the weights; nothing where it has none."""
    for reference in sorted(set(config.get("auto_map", {}).values())):
        name = f"{reference.split('.')[0]}.py"
        shutil.copyfile(MODELING / name, directory / name)
