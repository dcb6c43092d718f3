"""Correlation of the hidden neurons of two experts, measured over the tokens routed to either."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mcsmoe.alignment.assignment import assign
from mcsmoe.calibration.collect import Reduce, alone
from mcsmoe.calibration.watch import Batch, watch
from mcsmoe.checkpoint.streamed import device_of
from mcsmoe.families import Family, MoELayer, Routing
from mcsmoe.families.experts import expert_in_memory, hidden

BLOCK_BYTES = 4 * 2**30
"""Upper bound on the bytes of product sums, f² doubles per pair, in one pass; more pairs take further passes."""
CHUNK = 512
"""Tokens of one expert per chunk, on which all other experts run."""
EPSILON = 1e-7
"""Added to the product of two deviations, as in the reference implementation: a constant neuron correlates at 0."""


@dataclass
class PairMoments:
    """Sums over tokens of the activations z_i and z_j, for N pairs i < j of experts; float64.

    The tokens of a pair are those that select i or j.
    """

    pairs: Tensor  # [2, N]
    tokens: Tensor  # [N]
    sums: Tensor  # [2, N, f]: Σ z_i and Σ z_j
    squares: Tensor  # [2, N, f]
    products: Tensor  # [N, f, f]: Σ z_i z_jᵀ

    @classmethod
    def zeros(cls, pairs: Tensor, d_ff: int) -> "PairMoments":
        """Moments of `pairs` [2, N] before the first token."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=pairs.device)

        N, f = pairs.shape[1], d_ff
        return cls(pairs, zero(N), zero(2, N, f), zero(2, N, f), zero(N, f, f))

    def add(self, e: int, chosen: Tensor, activations: Callable[[int], Tensor]) -> None:
        """Add n tokens that select expert e to every pair that contains e, in place.

        chosen: [n, E], True where a token selects the expert; activations: expert → [n, f] on these tokens.
        """
        place, at = (self.pairs == e).nonzero(as_tuple=True)  # e is first (0) or second (1) of pair `at`
        if not len(at):
            return
        other = self.pairs[1 - place, at]  # [m]
        # A token that selects both experts of a pair must count once: only with the first.
        counted = (~((place == 1) & chosen[:, other])).double().T  # [m, n]
        z = activations(e).double()  # [n, f]
        u = torch.stack([activations(o) for o in other.tolist()]).double()  # [m, n, f]
        self.tokens[at] += counted.sum(1)
        self.sums[place, at] += counted @ z
        self.sums[1 - place, at] += (counted[:, None] @ u).squeeze(1)
        self.squares[place, at] += counted @ z.square()
        self.squares[1 - place, at] += (counted[:, None] @ u.square()).squeeze(1)
        products = (z * counted[..., None]).mT @ u  # [m, f, f]
        self.products[at] += torch.where((place == 0)[:, None, None], products, products.mT)

    def reduced(self, reduce: Reduce) -> "PairMoments":
        """The moments over the tokens of all processes."""
        sums = {name: reduce(getattr(self, name)) for name in ("tokens", "sums", "squares", "products")}
        return replace(self, **sums)

    def correlations(self) -> Iterator[Tensor]:
        """Yield the correlations ρ [f, f] of each pair, with the neurons of i as rows."""
        for n, sums, squares, products in zip(
            self.tokens, self.sums.unbind(1), self.squares.unbind(1), self.products, strict=True
        ):
            mean, free = sums / n.clamp(min=1), (n - 1).clamp(min=1)
            deviation = ((squares - sums * mean) / free).clamp(min=0).sqrt()  # [2, f]
            covariance = (products - torch.outer(sums[0], mean[1])) / free
            yield covariance / (torch.outer(*deviation) + EPSILON)


def assigned(correlation: Tensor) -> float:
    """Mean (1 + ρ)/2 over neurons matched one to one with the greatest total."""
    return float(1 + correlation.gather(1, assign(correlation)[:, None].to(correlation.device)).mean()) / 2


def best(correlation: Tensor) -> float:
    """Mean (1 + ρ)/2 over neurons of the second expert, each with its best match in the first."""
    return float(1 + correlation.amax(0).mean()) / 2


MEASURES: dict[str, Callable[[Tensor], float]] = {"correlation.lsa": assigned, "correlation.max": best}


def measure_correlations(
    model: nn.Module,
    family: Family,
    layers: Sequence[MoELayer],
    batches: Sequence[Batch],
    *,
    reduce: Reduce = alone,
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, dict[str, Tensor]]:
    """Compute each of `MEASURES` for every pair of experts: layer → name → [E, E] float64, symmetric, diagonal 1.

    In memory at a time: one layer's moments, for as many pairs as fit into `block_bytes`. Each such set of pairs takes
    one pass over the batches.
    """
    return {
        layer.name: _measure(model, family, layer, batches, reduce, max(1, block_bytes // (8 * layer.d_ff**2)))
        for layer in layers
    }


def _measure(
    model: nn.Module,
    family: Family,
    layer: MoELayer,
    batches: Sequence[Batch],
    reduce: Reduce,
    pairs_at_once: int,
) -> dict[str, Tensor]:
    device = device_of(model)
    matrices = {name: torch.eye(layer.experts, dtype=torch.float64) for name in MEASURES}
    for pairs in torch.triu_indices(layer.experts, layer.experts, 1, device=device).split(pairs_at_once, dim=1):
        moments = PairMoments.zeros(pairs, layer.d_ff)

        def see(layer: MoELayer, x: Tensor, routing: Routing, moments: PairMoments = moments) -> None:
            chosen = torch.zeros(len(x), layer.experts, dtype=torch.bool, device=x.device)
            chosen.scatter_(1, routing.index, True)
            for e in range(layer.experts):
                for rows in chosen[:, e].nonzero().flatten().split(CHUNK):
                    _add(moments, model, layer, e, chosen[rows], x[rows])

        watch(model, family, [layer], batches, see)
        # One pair at a time, because the solver takes one matrix.
        for (i, j), correlation in zip(pairs.T.tolist(), moments.reduced(reduce).correlations(), strict=True):
            for name, measure in MEASURES.items():
                matrices[name][i, j] = matrices[name][j, i] = measure(correlation)
    return matrices


def _add(moments: PairMoments, model: nn.Module, layer: MoELayer, e: int, chosen: Tensor, x: Tensor) -> None:
    def activations(expert: int) -> Tensor:
        return hidden(expert_in_memory(model, layer, expert), layer.layout, layer.activation, x)

    moments.add(e, chosen, activations)
