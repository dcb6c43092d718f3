"""Experts are alike when their mean outputs are: HC-SMoE (arXiv 2410.08589)."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.registry import SIMILARITIES, Evidence, collected


@SIMILARITIES.register("expert-output.mean")
def expert_output_mean(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of E_x f_e(x) over all tokens, whichever expert they select.

    A cosine is the same for sums as for means.
    """
    sums = collected(evidence.statistics.all_outputs, "expert-output.mean")  # [E, d]
    return cosine(sums @ sums.T)
