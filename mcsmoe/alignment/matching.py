"""Similarity of the hidden neurons of two experts, and the order of neurons that matches best."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mcsmoe.alignment.assignment import assign
from mcsmoe.families import Expert, Layout


def promoted(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype if that is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def by_neuron(name: str, expert: Expert, layout: Layout) -> Tensor:
    """Tensor `name` with hidden neurons as rows, float32 or better: `wi` [f, d] → [f, d], `wo` [d, f] → [f, d].

    A bias of an in-projection gives [f, 1]. Tensors without hidden neurons are not allowed.
    """
    axis = layout[name].hidden_axis
    assert axis is not None
    tensor = promoted(expert[name])
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def weight_similarity(reference: Expert, expert: Expert, layout: Layout) -> Tensor:
    """C = Σ_in W_ref W_eᵀ + W_out,refᵀ W_out,e [f, f] (Git Re-Basin eq. 2; exact for one hidden layer).

    C[i, j] compares neuron i of the reference with neuron j of the expert; in-projection biases count as one more
    input. Peak memory besides the experts: C, plus a float32 copy of one tensor of each if they have a smaller dtype.
    Raises `ValueError` if no tensor of the layout has hidden neurons.
    """
    names = [name for name in layout if layout[name].hidden_axis is not None]
    if not names:
        raise ValueError("no tensor of the layout has hidden neurons")

    def sides(name: str) -> tuple[Tensor, Tensor]:
        return by_neuron(name, reference, layout), by_neuron(name, expert, layout).T

    similarity = torch.mm(*sides(names[0]))
    for name in names[1:]:
        similarity.addmm_(*sides(name))  # into the same memory
    return similarity


@dataclass
class ActivationMoments:
    """Sums over tokens of the activations z of a reference and u of another expert; float64.

    The tokens are those routed to either expert.
    """

    tokens: Tensor  # []
    reference: Tensor  # [f]: Σ z
    expert: Tensor  # [f]: Σ u
    reference_square: Tensor  # [f]: Σ z²
    expert_square: Tensor  # [f]: Σ u²
    cross: Tensor  # [f, f]: Σ z uᵀ

    @classmethod
    def zeros(cls, d_ff: int) -> Self:
        """Moments before the first token."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(zero(), zero(d_ff), zero(d_ff), zero(d_ff), zero(d_ff), zero(d_ff, d_ff))

    def add(self, reference: Tensor, expert: Tensor) -> None:
        """Add the activations [T, f] of both experts on the same T tokens, in place."""
        z, u = reference.double().cpu(), expert.double().cpu()
        self.tokens += len(z)
        self.reference += z.sum(0)
        self.expert += u.sum(0)
        self.reference_square += z.square().sum(0)
        self.expert_square += u.square().sum(0)
        self.cross.addmm_(z.T, u)


def activation_similarity(moments: ActivationMoments) -> Tensor:
    """Correlation [f, f] of the reference's neurons with the expert's; 0 for a neuron that never varies."""
    n = moments.tokens.clamp(min=1)
    z, u = moments.reference / n, moments.expert / n
    correlation = (moments.cross / n).addr_(z, u, alpha=-1)  # in place, because the matrix is large for ZipIt
    correlation *= _inverse(deviation(moments.reference_square / n, z))[:, None]
    correlation *= _inverse(deviation(moments.expert_square / n, u))
    return correlation


def deviation(square: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation from the mean square and the mean; 0 for a constant."""
    variance = square - mean.square()
    # A constant may keep a tiny variance from rounding; dividing by it would give arbitrary correlations.
    return torch.where(variance > 1e-12 * square, variance, 0.0).sqrt()


def _inverse(deviations: Tensor) -> Tensor:
    return torch.where(deviations > 0, deviations, torch.inf).reciprocal()


def permute(expert: Expert, layout: Layout, perm: Tensor) -> Expert:
    """Reorder the hidden neurons of an expert: new neuron i is old neuron `perm[i]`, with perm [f].

    `wi` [f, d] → `wi[perm]`, `wo` [d, f] → `wo[:, perm]`; in-projection biases move with their rows, and tensors
    without hidden neurons stay.
    """
    return {name: permute_tensor(tensor, name, layout, perm) for name, tensor in expert.items()}


def permute_tensor(tensor: Tensor, name: str, layout: Layout, perm: Tensor) -> Tensor:
    """Reorder the hidden neurons of tensor `name` of an expert by perm [f]."""
    axis = layout[name].hidden_axis
    return tensor if axis is None else tensor.index_select(axis, perm.to(tensor.device))


def align(expert: Expert, reference: Expert, layout: Layout) -> Expert:
    """Reorder the expert's hidden neurons to match the reference best, by weight matching (paper §3.1)."""
    return permute(expert, layout, assign(weight_similarity(reference, expert, layout)))


@dataclass(frozen=True)
class Match:
    """A permutation, new neuron i = old neuron `perm[i]` [f], and the objective before and after, at most 1."""

    perm: Tensor
    before: float
    after: float


def match(similarity: Tensor, scale: float) -> Match:
    """The best match by similarity [f, f]; the objective is the sum over matched neurons divided by `scale`."""
    perm = assign(similarity)
    scale = scale or 1.0  # an expert of zeros gets objective 0
    before = similarity.diagonal().double().sum() / scale
    after = similarity.gather(1, perm[:, None]).double().sum() / scale
    return Match(perm, float(before), float(after))


def length(expert: Expert, layout: Layout) -> float:
    """The Euclidean norm of all tensors with hidden neurons: scale of a cosine, together with another expert's."""
    parts = (promoted(expert[name]) for name in layout if layout[name].hidden_axis is not None)
    return math.sqrt(sum(float(torch.linalg.vector_norm(part, dim=-1).double().square().sum()) for part in parts))
