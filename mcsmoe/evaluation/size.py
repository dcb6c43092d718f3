"""What a checkpoint costs to keep."""

from pathlib import Path
from typing import Any

from mcsmoe.architectures.registry import FAMILIES, merged_layers, sparse_layers
from mcsmoe.checkpoint.reader import Checkpoint


def size(model: Any, directory: Path) -> dict[str, int]:
    """`parameters` (tied ones once, index maps not), `bytes` of weights on disk, `experts` held.

    Of a family that is not known the experts are not, either, and are left out.
    """
    held = {"experts": experts(model.config)} if model.config.model_type in FAMILIES else {}
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.is_floating_point()),
        "bytes": _bytes(directory),
    } | held


def _bytes(directory: Path) -> int:
    """Of safetensors, or of the `.bin` files of an old checkpoint."""
    old = [] if list(directory.glob("*.safetensors")) else list(directory.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in old) or Checkpoint(directory).size_bytes


def experts(config: Any) -> int:
    """Experts held over all sparse layers: those of `moe_layers` in a merged model, else all of them."""
    merged = merged_layers(config) or {}
    return sum(
        merged[layer.name]["experts"] if layer.name in merged else layer.experts for layer in sparse_layers(config)
    )
