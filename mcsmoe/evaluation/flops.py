"""What a token costs, counted on the modules that really run, so that ranks and removed rows show."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mcsmoe.tasks.batches import collate
from mcsmoe.tasks.task import Encoded


@torch.no_grad()
def flops_per_token(model: Any, rows: Sequence[Encoded], pad: int) -> float:
    """Floating-point operations of the forward pass, per token of source and target.

    A multiply-add counts as two, as in `torch.utils.flop_counter`; matrix products and attention count, sums
    and activations do not. Each row runs alone: no padding, and no expert's capacity is shared between rows.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    with counter:
        for row in rows:
            model(**{name: value.to(model.device) for name, value in collate([row], pad).items()})
    tokens = sum(len(row.source) + len(row.target) for row in rows)
    return counter.get_total_flops() / tokens
