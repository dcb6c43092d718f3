"""Experts are alike when the router scores tokens alike for both: the paper's similarity."""

import torch
from torch import Tensor

from mcsmoe.routing.statistics import LayerStatistics
from mcsmoe.similarity.registry import SIMILARITIES


@SIMILARITIES.register("router-logits")
def router_logits(statistics: LayerStatistics) -> Tensor:
    """(1 + cos(H_i, H_j)) / 2 [E, E]; column H_e holds expert e's router logits over tokens (paper §3.2).

    The cosines come from the Gram matrix Σ h hᵀ. A column of zeros is at 0.5 from every other.
    """
    gram = statistics.logits_gram
    lengths = gram.diagonal().sqrt()
    scale = torch.outer(lengths, lengths)
    cosine = torch.where(scale > 0, gram / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    return ((1 + cosine.clamp(-1, 1)) / 2).fill_diagonal_(1.0)
