"""Experts are alike when the task loss pulls their weights the same way."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.gram import gradients, gram
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("gradient")
def gradient(evidence: Evidence) -> Tensor:
    """cos′(∇W_i, ∇W_j) [E, E] of the task loss summed over calibration; W_e holds all tensors of expert e.

    An expert that no token reaches is at 0.5 from all.
    """
    return cosine(gram(part for name in evidence.layer.layout for part in gradients(evidence, name, "gradient")))
