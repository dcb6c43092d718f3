"""Experts are alike at random: the control."""

import zlib

import torch
from torch import Tensor

from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("random")
def random(evidence: Evidence) -> Tensor:
    """Uniform in [0, 1) for each pair [E, E]; another draw in each layer, the same for the same seed."""
    E = evidence.layer.experts
    seed = zlib.crc32(f"{evidence.seed}/{evidence.layer.name}".encode())
    upper = torch.rand(E, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).triu(1)
    return (upper + upper.T).fill_diagonal_(1.0)
