"""What a checkpoint costs to keep."""

from pathlib import Path
from typing import Any

from mcsmoe.architectures.registry import merged_layers, sparse_layers
from mcsmoe.checkpoint.reader import Checkpoint


def size(model: Any, directory: Path) -> dict[str, int]:
    """`parameters` (tied ones once, index maps not), `bytes` of safetensors on disk, `experts` held."""
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.is_floating_point()),
        "bytes": Checkpoint(directory).size_bytes,
        "experts": experts(model.config),
    }


def experts(config: Any) -> int:
    """Experts held over all sparse layers: those of `moe_layers` in a merged model, else all of them."""
    merged = merged_layers(config) or {}
    return sum(
        merged[layer.name]["experts"] if layer.name in merged else layer.experts for layer in sparse_layers(config)
    )
