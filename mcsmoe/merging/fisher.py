"""Each weight counts by what the loss knows of it: Fisher-weighted averaging (Matena & Raffel, arXiv 2111.09832)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import by_blocks
from mcsmoe.merging.registry import RULES, Members


@RULES.register("fisher")
def fisher(members: Members) -> Expert:
    """W = Σ F_e ⊙ W_e / Σ F_e, element by element, F the empirical Fisher information of each weight.

    Matena & Raffel with equal λ. Where Σ F is 0, as it is for an expert that no token reached: the
    plain mean.
    """
    return _weighted(members, "fisher")


@RULES.register("exact-fisher")
def exact_fisher(members: Members) -> Expert:
    """The same with labels drawn from the model's own distribution, as Fisher information is defined."""
    return _weighted(members, "exact-fisher")


def _weighted(members: Members, kind: str) -> Expert:
    information = members.fisher(kind)

    def merged(name: str) -> Tensor:
        return _elementwise([e[name] for e in members.experts], [f[name] for f in information])

    return {name: merged(name) for name in members.layer.layout}


def _elementwise(weights: Sequence[Tensor], information: Sequence[Tensor]) -> Tensor:
    """Σ F ⊙ W / Σ F of tensors of one shape, in float64 and cast back."""
    count = len(weights)

    def mean(parts: Sequence[Tensor]) -> Tensor:
        plain, top, total = (torch.zeros_like(parts[0], dtype=torch.float64) for _ in range(3))
        for w, f in zip(parts[:count], parts[count:], strict=True):
            plain.add_(w, alpha=1 / count)
            top.addcmul_(f.double(), w.double())
            total.add_(f)
        return torch.where(total > 0, top / total, plain)

    return by_blocks(mean, [*weights, *information])
