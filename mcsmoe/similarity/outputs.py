"""Similarities by what experts compute: their outputs, and their hidden neurons."""

import torch
from torch import Tensor

from mcsmoe.similarity.evidence import SIMILARITIES, Evidence, collected, cosine


@SIMILARITIES.register("expert-output", needs="outputs")
def expert_output(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the outputs f_e(x) on all tokens, one after another: from Σ ⟨f_i(x), f_j(x)⟩.

    The order of hidden neurons does not matter.
    """
    return cosine(collected(evidence.statistics.output_gram, "expert-output"))


@SIMILARITIES.register("expert-output.mean", needs="outputs")
def expert_output_mean(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of E_x f_e(x) over all tokens, whichever expert they select.

    A cosine is the same for sums as for means.
    """
    sums = collected(evidence.statistics.all_outputs, "expert-output.mean")  # [E, d]
    return cosine(sums @ sums.T)


@SIMILARITIES.register("mse", needs="pair-errors")
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


@SIMILARITIES.register("feature-correlation.lsa", needs="correlation")
def feature_correlation_lsa(evidence: Evidence) -> Tensor:
    """Mean (1 + ρ)/2 [E, E] over hidden neurons assigned for the greatest total, on tokens of either expert."""
    return collected(evidence.measured.get("correlation.lsa"), "feature-correlation.lsa").clone()


@SIMILARITIES.register("feature-correlation.max", needs="correlation")
def feature_correlation_max(evidence: Evidence) -> Tensor:
    """Mean (1 + ρ)/2 [E, E] of each hidden neuron with the one that fits it best, on tokens of either expert.

    Neurons of the expert with the higher id choose among those of the lower, as in the reference
    implementation.
    """
    return collected(evidence.measured.get("correlation.max"), "feature-correlation.max").clone()
