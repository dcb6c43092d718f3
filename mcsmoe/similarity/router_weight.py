"""Experts are alike when their rows of the router are."""

from torch import Tensor

from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("router-weight")
def router_weight(evidence: Evidence) -> Tensor:
    """cos′(R_i, R_j) [E, E]; R_e is row e of the router matrix."""
    rows = evidence.source.tensor(evidence.layer.router_weight).double()  # [E, d]
    return cosine(rows @ rows.T)
