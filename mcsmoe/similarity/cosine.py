"""The cosine between vectors of experts, moved to [0, 1]."""

import torch
from torch import Tensor


def cosine(gram: Tensor) -> Tensor:
    """cos′ = (1 + cos) / 2 [E, E] from the Gram matrix [E, E] of the experts' vectors.

    A vector of zeros is at 0.5 from every other; the diagonal is 1.
    """
    gram = (gram + gram.T).double() / 2  # a product's two halves may be rounded differently
    lengths = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(lengths, lengths)
    cosines = torch.where(scale > 0, gram / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    return ((1 + cosines.clamp(-1, 1)) / 2).fill_diagonal_(1.0)
