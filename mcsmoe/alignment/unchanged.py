"""The check that reordering changed nothing but rounding."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mcsmoe.checkpoint.load import load_model, offloading
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import CheckpointError

ROUNDING = 1e-4
"""Largest change of a logit, relative to the largest logit, that float32 sums in another order explain."""


def largest_change(before: Path, after: Path, batch: Mapping[str, Tensor], memory_limit: int | None = None) -> float:
    """Largest absolute change in logits on `batch` between two checkpoints, one model in memory at a time.

    Where the change exceeds rounding it is measured again in float32, then in float64: in lower precision a near tie
    in a router may tip over. A model larger than `memory_limit` bytes is read from the disk as it runs.
    Raises `CheckpointError` when the change exceeds rounding there, too.
    """
    for dtype in (None, torch.float32, torch.float64):
        old, new = (_logits(directory, batch, dtype, memory_limit) for directory in (before, after))
        change = float((old - new).abs().max())
        if change <= ROUNDING * float(old.abs().max()):
            return change
    raise CheckpointError(f"logits of {after} differ by {change:.3g} from {before}: wrong permutation")


@torch.no_grad()
def _logits(
    directory: Path, batch: Mapping[str, Tensor], dtype: torch.dtype | None, memory_limit: int | None
) -> Tensor:
    checkpoint = Checkpoint(directory)
    narrowest = min(checkpoint.dtype(name).itemsize for name in checkpoint.names())
    size = checkpoint.size_bytes * (dtype.itemsize // narrowest if dtype else 1)
    with TemporaryDirectory() as scratch:
        model = load_model(directory, dtype=dtype, offload=offloading(size, memory_limit, scratch))
        logits: Tensor = model(**batch).logits
    return logits.double()
