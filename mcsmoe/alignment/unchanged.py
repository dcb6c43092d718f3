"""The check that reordering changed nothing but rounding."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.checkpoint.load import load_model
from mcsmoe.errors import CheckpointError

ROUNDING = 1e-4
"""Largest change of a logit, relative to the largest logit, that float32 sums in another order explain."""


def largest_change(before: Path, after: Path, batch: Mapping[str, Tensor]) -> float:
    """Largest absolute change in logits on `batch` between two checkpoints, one model in memory at a time.

    Where the change exceeds rounding it is measured again in float64: in lower precision a near tie in a
    router may tip over. Raises `CheckpointError` when it exceeds rounding there, too.
    """
    for dtype in (None, torch.float64):
        old, new = _logits(before, batch, dtype), _logits(after, batch, dtype)
        change = float((old - new).abs().max())
        if change <= ROUNDING * float(old.abs().max()):
            return change
    raise CheckpointError(f"logits of {after} differ by {change:.3g} from {before}: wrong permutation")


@torch.no_grad()
def _logits(directory: Path, batch: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
    logits: Tensor = load_model(directory, dtype=dtype)(**batch).logits
    return logits.double()
