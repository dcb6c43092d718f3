"""Saving a model in memory as a checkpoint directory."""

import re
import shutil
from pathlib import Path
from typing import Any

from mcsmoe.checkpoint.held import held
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.room import check_room_for
from mcsmoe.checkpoint.written import Written, written_pieces

MODELING = Path(__file__).parent.parent / "modeling"
RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)


def save_model(model: Any, tokenizer: Any, directory: Path) -> Written:
    """Write weights, configurations and tokenizer of a transformers model; equal models give equal bytes.

    Gives what is in memory, to compare with what lies there then. A class of ours brings its remote code along. Write
    inside `atomic_directory` to get all or nothing.
    Raises `DiskFullError` before anything is written.
    """
    check_room_for(model, directory / WEIGHTS)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return written_pieces(held(model, Checkpoint(directory).names()))


def write_remote_code(config: dict[str, Any], directory: Path) -> None:
    """Put the files that `auto_map` of a config.json names, and those they import, beside the weights.

    Nothing where the config names none of ours.
    """
    named = {str(reference).split(".")[0] for reference in config.get("auto_map", {}).values()}
    todo = {name for name in named if (MODELING / f"{name}.py").is_file()}
    done: set[str] = set()
    while todo:
        name = todo.pop()
        shutil.copyfile(MODELING / f"{name}.py", directory / f"{name}.py")
        done.add(name)
        todo |= set(RELATIVE_IMPORT.findall((MODELING / f"{name}.py").read_text())) - done
