"""What a token costs, counted on the modules that really run, so that ranks and removed rows show."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mcsmoe.tasks.batches import collate, is_causal, model_inputs
from mcsmoe.tasks.task import Encoded


def _grouped_mm(tokens: tuple[int, ...], weights: tuple[int, ...], *_: Any, **__: Any) -> int:
    """FLOPs of tokens [N, d] times one of the stacked weights [E, d, f] each."""
    return 2 * tokens[0] * weights[1] * weights[2]


# torch counts neither the grouped product that fused experts run, nor the CPU's kernel of attention.
UNCOUNTED = {torch.ops.aten._grouped_mm: _grouped_mm}


@torch.no_grad()
def flops_per_token(model: Any, rows: Sequence[Encoded], pad: int) -> float:
    """Floating-point operations of the forward pass, per token that runs: of source and target together.

    A multiply-add counts as two, as in `torch.utils.flop_counter`; matrix products and attention count, sums
    and activations do not. Each row runs alone: no padding, and no expert's capacity is shared between rows.
    """
    model.eval()
    causal = is_causal(model)
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter, sdpa_kernel(SDPBackend.MATH):
        for row in rows:
            batch = collate([row], pad, causal=causal)
            model(**{name: value.to(model.device) for name, value in model_inputs(batch, causal).items()})
    # A causal model does not run a row's last token: nothing is predicted from it.
    tokens = sum(len(row.source) + len(row.target) - causal for row in rows)
    return counter.get_total_flops() / tokens
