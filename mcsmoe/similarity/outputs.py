"""Similarities by what experts compute: their outputs and their activations."""

import torch
from torch import Tensor

from mcsmoe.similarity.evidence import SIMILARITIES, Evidence, collected, cosine


@SIMILARITIES.register("expert-output", needs="outputs")
def expert_output(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the outputs f_e(x), concatenated over all tokens, from the sums Σ ⟨f_i(x), f_j(x)⟩.

    The order of hidden neurons does not matter.
    """
    return cosine(collected(evidence.statistics.output_gram, "expert-output"))


@SIMILARITIES.register("expert-output.mean", needs="outputs")
def expert_output_mean(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the mean outputs over all tokens, whichever experts those select (HC-SMoE, arXiv 2410.08589).

    The code uses sums: a cosine is the same for sums and means.
    """
    sums = collected(evidence.statistics.all_outputs, "expert-output.mean")  # [E, d]
    return cosine(sums @ sums.T)


@SIMILARITIES.register("mse", needs="pair-errors")
def mse(evidence: Evidence) -> Tensor:
    """1/(1 + SSE/n) [E, E], where SSE is how far averaging a pair changes its outputs on its n = n_i + n_j tokens.

    SSE = Σ ‖f_i(x) − f_ij(x)‖² over the tokens of i + Σ ‖f_j(x) − f_ij(x)‖² over those of j, where f_ij has the
    averaged weights. A pair without tokens gets 0.5. The reference implementation uses 1/(1 + 0.1·ln SSE), which
    depends on the sample size; its pole at SSE = e⁻¹⁰ gives good pairs negative or huge values.
    """
    one_sided = collected(evidence.statistics.pair_errors, "mse")
    counts = evidence.statistics.counts
    errors, tokens = one_sided + one_sided.T, counts[:, None] + counts
    return torch.where(tokens > 0, 1 / (1 + errors / tokens.clamp(min=1)), 0.5).fill_diagonal_(1.0)


@SIMILARITIES.register("feature-correlation.lsa", needs="correlation")
def feature_correlation_lsa(evidence: Evidence) -> Tensor:
    """Mean (1 + ρ)/2 [E, E] over hidden neurons matched one to one, on the tokens of either expert."""
    return collected(evidence.measured.get("correlation.lsa"), "feature-correlation.lsa").clone()


@SIMILARITIES.register("feature-correlation.max", needs="correlation")
def feature_correlation_max(evidence: Evidence) -> Tensor:
    """Mean (1 + ρ)/2 [E, E] over hidden neurons, each with its best match, on the tokens of either expert.

    Each neuron of the expert with the higher id is matched to one of the lower, as in the reference implementation.
    """
    return collected(evidence.measured.get("correlation.max"), "feature-correlation.max").clone()
