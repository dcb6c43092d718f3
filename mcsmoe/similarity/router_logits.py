"""Experts are alike when the router scores tokens alike for both: the paper's similarity."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("router-logits")
def router_logits(evidence: Evidence) -> Tensor:
    """cos′(H_i, H_j) [E, E]; column H_e holds expert e's router logits over tokens (paper §3.2).

    The cosines come from the Gram matrix Σ h hᵀ.
    """
    return cosine(evidence.statistics.logits_gram)
