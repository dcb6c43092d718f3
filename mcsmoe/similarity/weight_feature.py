"""Experts are alike when their in-projections are, each input dimension counting as much as their own tokens use it."""

from torch import Tensor

from mcsmoe.architectures.layer import Role
from mcsmoe.similarity.cosine import cosine
from mcsmoe.similarity.gram import gram, weights
from mcsmoe.similarity.registry import SIMILARITIES, Evidence


@SIMILARITIES.register("weight-feature")
def weight_feature(evidence: Evidence) -> Tensor:
    """cos′(W_i ⊙ n_i, W_j ⊙ n_j) [E, E]; W_e holds the in-projections of expert e, gate and up alike.

    n_e is the L2 norm of each dimension of x over the tokens of e; without tokens, e is at 0.5 from all.
    """
    norms = evidence.statistics.input_square_sums.sqrt()[:, None]  # [E, 1, d]
    names = [name for name, role in evidence.layer.layout.items() if role in (Role.GATE, Role.UP)]
    return cosine(gram(part * norms for name in names for part in weights(evidence, name)))
