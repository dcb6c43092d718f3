"""AdamW and its schedule as the paper sets them (arXiv 2310.01334, appendix A2)."""

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from mcsmoe.params import Training

BETAS = (0.9, 0.98)
EPSILON = 1e-6


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    """AdamW over trainable parameters; biases and normalisation scales (fewer than two axes) do not decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear rise over `warmup_steps`, then linear fall to zero at `total_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, factor)
