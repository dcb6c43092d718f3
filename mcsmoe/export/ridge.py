"""Router rows by least squares."""

import torch
from torch import Tensor

from mcsmoe.errors import CheckpointError
from mcsmoe.export.registry import ROWS, RouterData

STRENGTH = 1e-3
"""Weight of the penalty, in units of the inputs' mean square."""
ROUNDING = 0.02
"""Largest difference of logits, relative to the largest logit, that bfloat16 explains."""


@ROWS.register("ridge")
def ridge(data: RouterData) -> Tensor:
    """argmin_W Σ_t ‖W x_t − y_t‖² + λ ‖W − W₀‖² with y the log Σ exp of members' logits, W₀ dominant rows: [K, p].

    Directions in which no token lies keep the dominant rows, groups of one expert theirs altogether.
    Raises `CheckpointError` where the router is not linear.
    """
    check_linear(data)
    start, gram = data.rows[list(data.dominants)].double(), data.gram
    moment = sum(((y - x @ start.T).T @ x for x, y in data.chunks()), torch.zeros_like(start))
    penalty = STRENGTH * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    return start + torch.linalg.solve(gram + penalty, moment, left=False)


def check_linear(data: RouterData) -> None:
    """Raise `CheckpointError` where the model's logits are not inputs times rows: no other rows can be fitted then."""
    change = (data.inputs.float() @ data.rows.float().T - data.logits.float()).abs().max()
    if change > ROUNDING * data.logits.abs().max():
        raise CheckpointError(
            f"{data.layer}: logits of the source's router differ from its tokens times the checkpoint's rows, by up to "
            f"{change:.3g}: no rows can be fitted; use --router dominant"
        )
