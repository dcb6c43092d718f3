"""Losses that keep a router healthy in training, for one layer at a time and on real tokens only.

One layer at a time, because four collapsed layers can look balanced when their logits are concatenated; real
tokens only, because padding would be balanced too.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def z_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean squared log-partition of the router (ST-MoE, arXiv 2202.08906, eq. 5); 0 without a real token.

    logits: [T, E]; mask: [T], non-zero at real tokens. Computed in float32. Returns a scalar.
    """
    real, count = _real(mask)
    partition = torch.logsumexp(logits.float(), dim=-1)  # [T]
    return (partition.square() * real).sum() / count


def balance_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """E·Σ_e f_e·P_e (Switch Transformers, arXiv 2101.03961, eq. 4); 1 when perfectly even, 0 without tokens.

    f_e is the share of real tokens whose first choice is e (no gradient), P_e the mean probability of e.
    logits: [T, E]; mask: [T], non-zero at real tokens. Computed in float32. Returns a scalar.
    """
    experts = logits.shape[-1]
    real, count = _real(mask)
    probability = logits.float().softmax(dim=-1)  # [T, E]
    chosen = F.one_hot(logits.argmax(dim=-1), experts).to(probability.dtype)  # [T, E]
    share = (real @ chosen) / count  # [E]
    mean_probability = (real @ probability) / count  # [E]
    return experts * (share * mean_probability).sum()


def _real(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mask as float32 [T], and how many tokens it keeps (at least 1, so that an empty batch gives 0)."""
    real = mask.bool().float()
    return real, real.sum().clamp(min=1)
