"""Ways in which a saved checkpoint can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mcsmoe.checkpoint.reader import WEIGHTS


def change(directory: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    """Write the weights of a checkpoint anew, after `edit` has changed the dict of them."""
    tensors = load_file(directory / WEIGHTS)
    edit(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def change_config(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Write the config.json of a checkpoint anew, after `edit` has changed its values."""
    values = json.loads((directory / "config.json").read_text())
    edit(values)
    (directory / "config.json").write_text(json.dumps(values))
