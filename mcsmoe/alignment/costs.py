"""How alike each hidden neuron of one expert is to each of another: [f, f], larger is more alike."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mcsmoe.architectures.layer import Expert, Layout

ROWS = 2048
"""Hidden neurons whose costs are added at once."""


def promoted(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own dtype where that is better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def by_neuron(name: str, expert: Expert, layout: Layout) -> Tensor:
    """Tensor `name`, hidden neurons as rows [f, n] (bias: n = 1), float32 or better; it must have some."""
    axis = layout[name].hidden_axis
    assert axis is not None
    tensor = promoted(expert[name])
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def weight_cost(reference: Expert, expert: Expert, layout: Layout) -> Tensor:
    """C = Σ_in W_ref W_eᵀ + W_out,refᵀ W_out,e [f, f] (Git Re-Basin eq. 2; exact for one hidden layer).

    C[i, j] compares neuron i of the reference with neuron j of the expert; biases of in-projections count
    as one more input. Peak memory beside the experts: C, and one tensor of each expert where it is not float32.
    """
    cost: Tensor | None = None
    for name in layout:
        if layout[name].hidden_axis is not None:
            # Arguments only, so that they are gone before the next ones come.
            cost = _plus(cost, by_neuron(name, reference, layout), by_neuron(name, expert, layout))
    if cost is None:
        raise ValueError("no tensor of the layout has hidden neurons")
    return cost


def _plus(cost: Tensor | None, ours: Tensor, theirs: Tensor) -> Tensor:
    if cost is None:
        return ours @ theirs.T
    # By rows, so that no second [f, f] is needed; `addmm_` would round otherwise than a sum of products.
    for some, rows in zip(cost.split(ROWS), ours.split(ROWS), strict=True):
        some += rows @ theirs.T
    return cost


@dataclass
class ActivationMoments:
    """Sums over tokens of the hidden activations z of a reference and u of another expert; float64.

    Tokens are those routed to either.
    """

    tokens: Tensor  # []
    reference: Tensor  # [f]: Σ z
    expert: Tensor  # [f]: Σ u
    reference_square: Tensor  # [f]: Σ z²
    expert_square: Tensor  # [f]: Σ u²
    cross: Tensor  # [f, f]: Σ z uᵀ

    @classmethod
    def zeros(cls, d_ff: int) -> Self:
        """No token seen yet."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(zero(), zero(d_ff), zero(d_ff), zero(d_ff), zero(d_ff), zero(d_ff, d_ff))

    def add(self, reference: Tensor, expert: Tensor) -> None:
        """Add the activations [T, f] of both on the same T tokens, in place."""
        z, u = reference.double().cpu(), expert.double().cpu()
        self.tokens += len(z)
        self.reference += z.sum(0)
        self.expert += u.sum(0)
        self.reference_square += z.square().sum(0)
        self.expert_square += u.square().sum(0)
        self.cross.addmm_(z.T, u)


def activation_cost(moments: ActivationMoments) -> Tensor:
    """Correlation [f, f] of the reference's neurons with the expert's; 0 for a neuron that never varies."""
    n = moments.tokens.clamp(min=1)
    z, u = moments.reference / n, moments.expert / n
    correlation = (moments.cross / n).addr_(z, u, alpha=-1)  # in place: for ZipIt this is no small matrix
    correlation *= _inverse(deviation(moments.reference_square / n, z))[:, None]
    correlation *= _inverse(deviation(moments.expert_square / n, u))
    return correlation


def deviation(square: Tensor, mean: Tensor) -> Tensor:
    """Standard deviation from the mean square and the mean; 0 for what never varies."""
    variance = square - mean.square()
    # What rounding leaves of a constant is no variance: dividing by it would give any correlation.
    return torch.where(variance > 1e-12 * square, variance, 0.0).sqrt()


def _inverse(deviations: Tensor) -> Tensor:
    return torch.where(deviations > 0, deviations, torch.inf).reciprocal()
