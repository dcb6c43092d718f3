"""Losses of a batch whose rows are shared out over processes: each is that of all rows together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mcsmoe.tasks.batches import IGNORED
from mcsmoe.training.together import mean, summed


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of −ln p over the label tokens of all processes; 0 without any. logits: [B, T, V]; labels: [B, T]."""
    flat = logits.flatten(0, 1).float()
    return mean(
        F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum"), (labels != IGNORED).sum()
    )


def z_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean of (ln Σ_e exp h_e)² over real tokens (ST-MoE, arXiv 2202.08906, eq. 5); 0 without real tokens.

    logits: [T, E]; mask: [T], non-zero at real tokens. Computed in float32, over all processes. Returns a scalar.
    """
    real = mask.bool().float()
    partition = torch.logsumexp(logits.float(), dim=-1)  # [T]
    return mean((partition.square() * real).sum(), real.sum())


def balance_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """E·Σ_e f_e·P_e (Switch Transformers, arXiv 2101.03961, eq. 4); 1 if perfectly even, 0 without real tokens.

    f_e is the share of real tokens whose first choice is e (no gradient), P_e the mean probability of e over them.
    logits: [T, E]; mask: [T], non-zero at real tokens. Computed in float32, over all processes. Returns a scalar.
    """
    experts = logits.shape[-1]
    real = mask.bool().float()
    probability = logits.float().softmax(dim=-1)  # [T, E]
    chosen = F.one_hot(logits.argmax(dim=-1), experts).to(probability.dtype)  # [T, E]
    choices, probabilities = summed(torch.stack([real @ chosen, real @ probability]))  # [E] each
    count = choices.sum().clamp(min=1)
    return experts * (choices / count * (probabilities / count)).sum()
