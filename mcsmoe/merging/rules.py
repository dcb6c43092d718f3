"""Merging rules by name: each combines the members of a group into one expert."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.families import Expert, MoELayer
from mcsmoe.registry import Registry


@dataclass(frozen=True)
class Members:
    """The m experts of one group as a rule sees them, with their hidden neurons aligned as the recipe says.

    `fisher(kind)` reads the Fisher information of each member's weights, aligned in the same way. `inputs()` returns
    the inputs [n, d] of the calibration tokens routed to any member, for which the model may have to run.
    """

    experts: Sequence[Expert]
    weights: Tensor  # [m] float64: importances as shares of the layer, by default activation frequencies ν
    dominant: int  # index of the dominant expert in `experts`
    layer: MoELayer
    statistics: LayerStatistics
    fisher: Callable[[str], Sequence[Expert]]
    inputs: Callable[[], Tensor]
    seed: int


Rule = Callable[[Members], Expert]
"""Two or more members → the merged expert, in their dtypes. A singleton is kept without calling a rule."""

RULES: Registry[Rule] = Registry("merging rule", "mcsmoe.merging", needs=None, looks=False)
"""Facts of a rule: `needs`, the entry of `collect.also` it requires; `looks`, if it calls `Members.inputs`."""


BLOCK = 2**15
"""Elements per block of an element-wise computation."""


def combine(members: Sequence[Expert], weights: Tensor) -> Expert:
    """Σ w_e W_e / Σ w_e of every tensor, with weights [m] float64, summed in float64 and cast back.

    Weights that sum to 0 give the plain mean.
    """
    total = weights.sum()
    shares = (weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))).tolist()
    return {name: _weighted([member[name] for member in members], shares) for name in members[0]}


def _weighted(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    def total(parts: Sequence[Tensor]) -> Tensor:
        exact = torch.zeros_like(parts[0], dtype=torch.float64)
        for part, share in zip(parts, shares, strict=True):
            exact.add_(part, alpha=share)
        return exact

    return by_blocks(total, tensors)


def by_blocks(formula: Callable[[Sequence[Tensor]], Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Apply an element-wise `formula` to tensors of one shape, in blocks of `BLOCK`; the result has the first's dtype.

    Blocks keep the float64 copies small, and in the cache.
    """
    result = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    flat = [tensor.reshape(-1) for tensor in tensors]
    for start in range(0, result.numel(), BLOCK):
        block = slice(start, start + BLOCK)
        result.view(-1)[block] = formula([tensor[block] for tensor in flat])
    return result


@RULES.register("frequency")
def frequency(members: Members) -> Expert:
    """W = Σ ν_e W_e / Σ ν_e (paper eq. 2), with ν the recipe's importance; the plain mean if all are 0."""
    return combine(members.experts, members.weights)


@RULES.register("average")
def average(members: Members) -> Expert:
    """W = Σ W_e / m: the plain mean (the paper's baseline "averaging")."""
    return combine(members.experts, torch.ones_like(members.weights))


@RULES.register("reversed")
def reversed_frequency(members: Members) -> Expert:
    """W = Σ (1 − ν_e) W_e / Σ (1 − ν_e): the least important member counts most."""
    return combine(members.experts, 1 - members.weights)


@RULES.register("random")
def random(members: Members) -> Expert:
    """W = Σ w_e W_e, with w drawn uniformly from the simplex: exponential variates divided by their sum."""
    generator = torch.Generator().manual_seed(members.seed)
    return combine(members.experts, torch.empty_like(members.weights).exponential_(generator=generator))


@RULES.register("dominant")
def dominant(members: Members) -> Expert:
    """The dominant expert; bit-identical if it is the reference of the alignment, or if nothing is aligned."""
    return members.experts[members.dominant]


@RULES.register("fisher", needs="gradients")
def fisher(members: Members) -> Expert:
    """W = Σ F_e ⊙ W_e / Σ F_e, element by element, with F the empirical Fisher information of each weight.

    This is Fisher merging with equal λ (Matena & Raffel, arXiv 2111.09832). Elements with Σ F = 0, as in experts that
    no token reached, get the plain mean.
    """
    return _by_information(members, "fisher")


@RULES.register("exact-fisher", needs="exact-fisher")
def exact_fisher(members: Members) -> Expert:
    """As `fisher`, with the exact Fisher information: labels follow the model's own distribution."""
    return _by_information(members, "exact-fisher")


def _by_information(members: Members, kind: str) -> Expert:
    information = members.fisher(kind)

    def merged(name: str) -> Tensor:
        return _elementwise([e[name] for e in members.experts], [f[name] for f in information])

    return {name: merged(name) for name in members.layer.layout}


def _elementwise(weights: Sequence[Tensor], information: Sequence[Tensor]) -> Tensor:
    """Σ F ⊙ W / Σ F of tensors of one shape, computed in float64 and cast back."""
    count = len(weights)

    def mean(parts: Sequence[Tensor]) -> Tensor:
        plain, top, total = (torch.zeros_like(parts[0], dtype=torch.float64) for _ in range(3))
        for w, f in zip(parts[:count], parts[count:], strict=True):
            plain.add_(w, alpha=1 / count)
            top.addcmul_(f.double(), w.double())
            total.add_(f)
        return torch.where(total > 0, top / total, plain)

    return by_blocks(mean, [*weights, *information])
