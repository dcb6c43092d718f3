"""Experts are alike when their weights are, neuron by neuron."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.gram import gram, weights
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("weight")
def weight(evidence: Evidence) -> Tensor:
    """cos′(W_i, W_j) [E, E]; W_e holds all tensors of expert e, flattened."""
    return cosine(gram(part for name in evidence.layer.layout for part in weights(evidence, name)))
