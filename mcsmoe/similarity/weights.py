"""Similarities by the experts' weights, and by gradients of the task loss with respect to them."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mcsmoe.families import Role
from mcsmoe.similarity.evidence import SIMILARITIES, Evidence, collected, cosine

CHUNK = 2**21
"""Numbers per chunk, over all experts together: they stay in the processor's cache."""
WIDTH = 4096
"""Numbers of each expert whose products are summed up in the chunk's own precision."""


def gram(parts: Iterable[Tensor]) -> Tensor:
    """Inner products [E, E] float64 of the experts' vectors, given as consecutive chunks `parts` [E, …].

    For float32 chunks the products of `WIDTH` numbers are a float32, and only their sum is float64. The error of
    ⟨v_i, v_j⟩ is at most WIDTH · 2⁻²⁴ · Σ |v_i||v_j|; since rounding is as often up as down, it is some thousand times
    smaller: 2e-10 of a cosine for weights of trained size.
    """
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        for some in part.flatten(1).split(WIDTH, 1):
            total = total + (some @ some.T).double()
    return total


def weights(evidence: Evidence, name: str) -> Iterator[Tensor]:
    """Yield tensor `name` of all experts in chunks [E, rows, …], float32 or better."""
    layer = evidence.layer
    tensors = [layer.read(evidence.source, e, name) for e in range(layer.experts)]
    return _chunks(tensors, torch.promote_types(tensors[0].dtype, torch.float32))


def gradients(evidence: Evidence, name: str, similarity: str) -> Iterator[Tensor]:
    """Yield the task loss's gradient in the same chunks, but float64: its squares may be too small for float32.

    Raises `StatisticsError` if it was not collected.
    """
    layer, found = evidence.layer, collected(evidence.gradients, similarity)
    return _chunks([found.tensor("gradient", layer, e, name) for e in range(layer.experts)], torch.float64)


def _chunks(tensors: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    rows = max(1, CHUNK * len(tensors[0]) // sum(tensor.numel() for tensor in tensors))
    for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
        yield torch.stack(parts).to(dtype)


@SIMILARITIES.register("weight")
def weight(evidence: Evidence) -> Tensor:
    """cos′(W_i, W_j) [E, E], where W_e holds all tensors of expert e, flattened."""
    return cosine(gram(part for name in evidence.layer.layout for part in weights(evidence, name)))


@SIMILARITIES.register("weight-feature")
def weight_feature(evidence: Evidence) -> Tensor:
    """cos′(W_i ⊙ n_i, W_j ⊙ n_j) [E, E], where W_e holds the in-projections (gate and up) of expert e.

    n_e [d] is the L2 norm of each dimension of x over the tokens of e; an expert without tokens gets 0.5.
    """
    norms = evidence.statistics.input_square_sums.sqrt().float()[:, None]  # [E, 1, d]
    names = [name for name, role in evidence.layer.layout.items() if role in (Role.GATE, Role.UP)]
    return cosine(gram(part * norms for name in names for part in weights(evidence, name)))


@SIMILARITIES.register("gradient", needs="gradients")
def gradient(evidence: Evidence) -> Tensor:
    """cos′(∇W_i, ∇W_j) [E, E] of the task loss summed over calibration rows; W_e holds all tensors of expert e.

    An expert that no token reaches gets 0.5.
    """
    return cosine(gram(part for name in evidence.layer.layout for part in gradients(evidence, name, "gradient")))


@SIMILARITIES.register("weight-gradient", needs="gradients")
def weight_gradient(evidence: Evidence) -> Tensor:
    """cos′(W_i ⊙ ∇W_i, W_j ⊙ ∇W_j) [E, E], with W_e and the task loss as in `gradient`.

    An expert that no token reaches gets 0.5.
    """
    return cosine(
        gram(
            w * g
            for name in evidence.layer.layout
            for w, g in zip(weights(evidence, name), gradients(evidence, name, "weight-gradient"), strict=True)
        )
    )
