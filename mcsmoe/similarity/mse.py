"""Experts are alike when their plain average does what each of them does on its own tokens."""

import torch
from torch import Tensor

from mcsmoe.similarity.registry import SIMILARITIES, Evidence, collected


@SIMILARITIES.register("mse")
def mse(evidence: Evidence) -> Tensor:
    """1/(1 + SSE/n) [E, E]: SSE = Σ ‖f_i(x) − f_ij(x)‖² over the tokens of i, and the same over those of j.

    f_ij has the averaged weights of i and j; n = n_i + n_j. Without tokens the pair is at 0.5.
    The reference implementation has 1/(1 + 0.1·ln SSE) instead: it grows with the size of the sample, and
    its pole at SSE = e⁻¹⁰ gives good pairs negative or huge values.
    """
    one_sided = collected(evidence.statistics.pair_errors, "mse")
    counts = evidence.statistics.counts
    errors, tokens = one_sided + one_sided.T, counts[:, None] + counts
    return torch.where(tokens > 0, 1 / (1 + errors / tokens.clamp(min=1)), 0.5).fill_diagonal_(1.0)
