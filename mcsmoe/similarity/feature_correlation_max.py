"""Experts are alike when each hidden neuron of one fires together with some neuron of the other."""

from torch import Tensor

from mcsmoe.similarity.registry import SIMILARITIES, Evidence, collected


@SIMILARITIES.register("feature-correlation.max")
def feature_correlation_max(evidence: Evidence) -> Tensor:
    """Mean (1 + ρ)/2 [E, E] of each hidden neuron with the one that fits it best, on tokens of either expert.

    Neurons of the expert with the higher id choose among those of the lower, as in the reference
    implementation.
    """
    return collected(evidence.measured.get("correlation.max"), "feature-correlation.max").clone()
