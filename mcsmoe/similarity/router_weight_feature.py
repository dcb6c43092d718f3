"""Experts are alike when their rows of the router are, each input dimension counting as much as tokens use it."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("router-weight-feature")
def router_weight_feature(evidence: Evidence) -> Tensor:
    """cos′(R_i ⊙ n, R_j ⊙ n) [E, E]; n is the L2 norm of each dimension of x over all tokens."""
    squares = evidence.statistics.input_gram.diagonal()  # [d]: n²
    rows = evidence.source.tensor(evidence.layer.router_weight).double()  # [E, d]
    return cosine((rows * squares) @ rows.T)
