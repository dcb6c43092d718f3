"""Sources, by name, of the K router rows of each layer of a stock checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mcsmoe.errors import CheckpointError
from mcsmoe.registry import Registry

CHUNK = 4096
"""Tokens per float64 chunk."""


Choice = tuple[Tensor, Tensor]
"""What a router selected for T tokens: experts [T, k], and the gates [T, k] with which their outputs are summed."""


@dataclass(frozen=True)
class RouterData:
    """One router over E experts, its inputs and logits on T calibration tokens, and the K groups of experts.

    A linear router gives logits = `inputs` [T, p] · `rows`ᵀ, with `rows` [E, p]. A bias is the last column of `rows`,
    and `inputs` then end with 1. `logits` [T, E] and the experts `chosen` are those of the model itself. `members`
    lists the experts of each group, `dominants` one expert of each; experts in no group are ignored.
    """

    layer: str
    rows: Tensor
    inputs: Tensor
    logits: Tensor
    chosen: Choice
    members: Sequence[Sequence[int]]
    dominants: Sequence[int]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens in float64 chunks: inputs [n, p], and the wanted logits of the groups [n, K].

        The wanted logit is log Σ exp of the members' logits: its softmax is the sum of the members' probabilities.
        """
        for x, logits in zip(self.inputs.split(CHUNK), self.logits.split(CHUNK)):
            parts = [logits[:, list(group)].double().logsumexp(1) for group in self.members]
            yield x.double(), torch.stack(parts, 1)

    @cached_property
    def gram(self) -> Tensor:
        """Σ x xᵀ over the inputs: [p, p] float64."""
        width = self.rows.shape[1]
        return sum((x.T @ x for x, _ in self.chunks()), torch.zeros(width, width, dtype=torch.float64))


RowRule = Callable[[RouterData], Tensor]
"""Data of a router → the K rows [K, p] float64, with a bias, if any, in the last column."""

ROWS: Registry[RowRule] = Registry("source of router rows", "mcsmoe.exporting", looks=False)
"""The fact `looks` marks a source that fits the rows to calibration tokens."""


@ROWS.register("dominant")
def dominant(data: RouterData) -> Tensor:
    """The unchanged router row of each group's dominant expert: [K, p]."""
    return data.rows[list(data.dominants)].double()


STRENGTH = 1e-3
"""Weight of the penalty, in units of the mean diagonal entry of Σ x xᵀ."""
ROUNDING = 0.02
"""Largest difference of logits, relative to the largest logit, that bfloat16 rounding can cause."""


@ROWS.register("ridge", looks=True)
def ridge(data: RouterData) -> Tensor:
    """Fit the rows W [K, p] by ridge regression: argmin_W Σ_t ‖W x_t − y_t‖² + λ ‖W − W₀‖².

    y_t [K] are the log Σ exp of the members' logits, and W₀ the dominant rows. In directions without tokens, W keeps
    the dominant rows; a group of one expert keeps its row. Raises `CheckpointError` if the router is not linear.
    """
    check_linear(data)
    start, gram = data.rows[list(data.dominants)].double(), data.gram
    moment = sum(((y - x @ start.T).T @ x for x, y in data.chunks()), torch.zeros_like(start))
    penalty = STRENGTH * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    return start + torch.linalg.solve(gram + penalty, moment, left=False)


def check_linear(data: RouterData) -> None:
    """Raise `CheckpointError` if the model's logits are not inputs · rowsᵀ: then no rows can be fitted."""
    change = (data.inputs.float() @ data.rows.float().T - data.logits.float()).abs().max()
    if change > ROUNDING * data.logits.abs().max():
        raise CheckpointError(
            f"{data.layer}: logits of the source's router differ from its tokens times the checkpoint's rows, by up to "
            f"{change:.3g}: no rows can be fitted; take those of 'dominant'"
        )


STEPS = 100
TOLERANCE = 1e-9
"""L-BFGS stops below this largest entry of the gradient, in whitened coordinates."""
FLOOR = 1e-6
"""Added to the inputs' second moment in every direction, relative to its mean diagonal entry."""


@ROWS.register("cross-entropy", looks=True)
def cross_entropy(data: RouterData) -> Tensor:
    """Fit the rows W [K, p] by cross-entropy, starting from `ridge`: argmin_W −Σ_t p_t · log softmax(W x_t).

    p_t [K] are the members' probabilities, summed by group. The problem is convex; L-BFGS solves it in coordinates
    in which the inputs are white: z = W C with Σ x xᵀ / T = C Cᵀ. Softmax ignores whatever is common to all rows; that
    part stays as `ridge` leaves it, which matters for routers that score by a sigmoid.
    Raises `CheckpointError` if the router is not linear.
    """
    start = ridge(data)
    root = _root(data)
    z = torch.nn.Parameter(start @ root)
    solver = torch.optim.LBFGS(
        [z], max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        loss, slope = objective(data, _unwhitened(z.detach(), root))
        z.grad = torch.linalg.solve_triangular(root, slope.T, upper=False).T
        return loss

    solver.step(closure)
    return _unwhitened(z.detach(), root)


def objective(data: RouterData, rows: Tensor) -> tuple[float, Tensor]:
    """Mean cross-entropy over the tokens, in nats, and its gradient [K, p] with respect to the rows."""
    loss, slope = 0.0, torch.zeros_like(rows)
    for x, y in data.chunks():
        wanted, found = y.softmax(1), (x @ rows.T).log_softmax(1)
        loss -= float((wanted * found).sum())
        slope += (found.exp() - wanted).T @ x
    return loss / len(data.inputs), slope / len(data.inputs)


def _root(data: RouterData) -> Tensor:
    """Lower triangular C [p, p] with C Cᵀ = Σ x xᵀ / T, plus a small multiple of the identity against singularity."""
    gram = data.gram / len(data.inputs)
    return torch.linalg.cholesky(gram + FLOOR * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype))


def _unwhitened(z: Tensor, root: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root, z, upper=False, left=False)


def agreement(data: RouterData, stock: Choice) -> float:
    """Mean share of a token's gates that go to the same merged experts by the model's router and by the `stock` one.

    Gates of a token are scaled to the sum 1. The model's gates 0.6 and 0.4 to two experts of group 0, and 0.7 to
    group 0 and 0.3 to group 1 by the stock router, share 0.7. For a router that selects one expert it is the share
    of tokens that go to the same group. A dropped expert is never selected: the best of the others is.
    """
    label = torch.full((data.logits.shape[1],), -1)
    for k, group in enumerate(data.members):
        label[list(group)] = k
    index, gates = data.chosen
    if (label < 0).any():
        gates, index = data.logits.masked_fill(label < 0, float("-inf")).softmax(1).topk(index.shape[1])
    before = _shares(label[index], gates, len(data.members))
    return float(torch.minimum(before, _shares(*stock, len(data.members))).sum(1).mean())


def _shares(index: Tensor, gates: Tensor, count: int) -> Tensor:
    """Gates [T, k] of the merged experts `index` [T, k] → the share of each of `count` merged experts [T, K]."""
    summed = torch.zeros(len(index), count, dtype=torch.float64).scatter_add(1, index, gates.double())
    return summed / summed.sum(1, keepdim=True)
