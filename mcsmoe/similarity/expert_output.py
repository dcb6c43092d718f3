"""Experts are alike when they give alike outputs for the same tokens, whichever expert these select."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.registry import SIMILARITIES, Evidence, collected


@SIMILARITIES.register("expert-output")
def expert_output(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the outputs f_e(x) on all tokens, one after another: from Σ ⟨f_i(x), f_j(x)⟩.

    The order of hidden neurons does not matter.
    """
    return cosine(collected(evidence.statistics.output_gram, "expert-output"))
