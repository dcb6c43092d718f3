from typing import Any

import torch

from mcsmoe.params import Compress, Distillation


def compress(**changes: Any) -> Compress:
    values: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "rank": 2,
        "rank_ratio": None,
        "structure": "row",
        "final_ratio": 0.1,
        "initial_warmup": 0.2,
        "final_warmup": 0.3,
        "interval": 1,
        "importance": "sensitivity",
        "beta": 0.85,
        "uncertainty": None,
        "loss": Distillation(task=1, kd=0.2, hidden=0, temperature=2, normalization="label-tokens"),
    }
    return Compress(**{**values, **changes})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
