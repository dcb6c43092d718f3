"""Experts are alike when the task loss depends on their weights in the same way, to first order."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.gram import gradients, gram, weights
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("weight-gradient")
def weight_gradient(evidence: Evidence) -> Tensor:
    """cos′(W_i ⊙ ∇W_i, W_j ⊙ ∇W_j) [E, E] of the task loss summed over calibration; all tensors of an expert.

    An expert that no token reaches is at 0.5 from all.
    """
    return cosine(
        gram(
            w * g
            for name in evidence.layer.layout
            for w, g in zip(weights(evidence, name), gradients(evidence, name, "weight-gradient"), strict=True)
        )
    )
