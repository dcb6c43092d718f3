"""Experts are alike when their tokens are, on average."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("feature")
def feature(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the mean input of the tokens routed to each expert; without tokens, e is at 0.5 from all.

    A cosine is the same for sums as for means.
    """
    sums = evidence.statistics.input_sums  # [E, d]
    return cosine(sums @ sums.T)
