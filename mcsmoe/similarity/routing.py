"""Similarities by what the router does: its logits, its rows, and the tokens that it sends to each expert."""

import zlib

import torch
from torch import Tensor

from mcsmoe.similarity.evidence import SIMILARITIES, Evidence, cosine


@SIMILARITIES.register("router-logits")
def router_logits(evidence: Evidence) -> Tensor:
    """cos′(H_i, H_j) [E, E], where column H_e holds the router logits of expert e over all tokens (paper §3.2).

    Computed from the Gram matrix Σ h hᵀ.
    """
    return cosine(evidence.statistics.logits_gram)


@SIMILARITIES.register("router-weight")
def router_weight(evidence: Evidence) -> Tensor:
    """cos′(R_i, R_j) [E, E], where R_e is row e of the router matrix."""
    rows = evidence.source.tensor(evidence.layer.router_weight).double()  # [E, d]
    return cosine(rows @ rows.T)


@SIMILARITIES.register("router-weight-feature")
def router_weight_feature(evidence: Evidence) -> Tensor:
    """cos′(R_i ⊙ n, R_j ⊙ n) [E, E], where n [d] is the L2 norm of each dimension of x over all tokens."""
    squares = evidence.statistics.input_square_sums.sum(0)  # [d]: k n², and a cosine is the same for any factor
    rows = evidence.source.tensor(evidence.layer.router_weight).double()  # [E, d]
    return cosine((rows * squares) @ rows.T)


@SIMILARITIES.register("feature")
def feature(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the mean inputs of the tokens routed to each expert; an expert without tokens gets 0.5.

    The code uses sums: a cosine is the same for sums and means.
    """
    sums = evidence.statistics.input_sums  # [E, d]
    return cosine(sums @ sums.T)


@SIMILARITIES.register("feature.abs")
def feature_abs(evidence: Evidence) -> Tensor:
    """cos′ [E, E] of the mean |x| of the tokens routed to each expert; an expert without tokens gets 0.5.

    The code uses sums: a cosine is the same for sums and means.
    """
    sums = evidence.statistics.input_abs_sums  # [E, d]
    return cosine(sums @ sums.T)


@SIMILARITIES.register("random")
def random(evidence: Evidence) -> Tensor:
    """A uniform draw in [0, 1) for each pair [E, E], different in each layer and reproducible by the seed."""
    E = evidence.layer.experts
    seed = zlib.crc32(f"{evidence.seed}/{evidence.layer.name}".encode())
    upper = torch.rand(E, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).triu(1)
    return (upper + upper.T).fill_diagonal_(1.0)
