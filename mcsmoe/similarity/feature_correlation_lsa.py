"""Experts are alike when their hidden neurons, matched one to one, fire together."""

from torch import Tensor

from mcsmoe.similarity.registry import SIMILARITIES, Evidence, collected


@SIMILARITIES.register("feature-correlation.lsa")
def feature_correlation_lsa(evidence: Evidence) -> Tensor:
    """Mean (1 + ρ)/2 [E, E] over hidden neurons assigned for the greatest total, on tokens of either expert."""
    return collected(evidence.measured.get("correlation.lsa"), "feature-correlation.lsa").clone()
