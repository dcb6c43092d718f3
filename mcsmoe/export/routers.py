"""The K router rows of each layer of a stock checkpoint: where they come from, by name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mcsmoe.errors import CheckpointError
from mcsmoe.registry import Registry

CHUNK = 4096
"""Tokens that are in memory in float64 at once."""


@dataclass(frozen=True)
class RouterData:
    """One router over E experts, what it did on T calibration tokens, and the K groups of experts.

    Logits are `inputs` [T, p] times `rows` [E, p]: where the router has a bias, it is the last column of `rows`, and
    `inputs` end with 1. `logits` [T, E] are those of the model itself. `members` has the experts of each group,
    `dominants` one of each; experts in no group have no share in anything.
    """

    layer: str
    rows: Tensor
    inputs: Tensor
    logits: Tensor
    members: Sequence[Sequence[int]]
    dominants: Sequence[int]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Parts of the tokens in float64: inputs [n, p], and what a row of each group should give, [n, K].

        That is log Σ exp of the members' logits, whose softmax is the sum of the members' probabilities.
        """
        for x, logits in zip(self.inputs.split(CHUNK), self.logits.split(CHUNK)):
            parts = [logits[:, list(group)].double().logsumexp(1) for group in self.members]
            yield x.double(), torch.stack(parts, 1)

    @cached_property
    def gram(self) -> Tensor:
        """Σ x xᵀ over the inputs: [p, p] float64."""
        width = self.rows.shape[1]
        return sum((x.T @ x for x, _ in self.chunks()), torch.zeros(width, width, dtype=torch.float64))


Rule = Callable[[RouterData], Tensor]
"""What is known of a router → the K rows [K, p] float64, a bias in the last column where it has one."""

ROWS: Registry[Rule] = Registry("source of router rows", "mcsmoe.export")


@ROWS.register("dominant")
def dominant(data: RouterData) -> Tensor:
    """The row of each group's dominant expert, bit by bit: [K, p]."""
    return data.rows[list(data.dominants)].double()


STRENGTH = 1e-3
"""Weight of the penalty, in units of the inputs' mean square."""
ROUNDING = 0.02
"""Largest difference of logits, relative to the largest logit, that bfloat16 explains."""


@ROWS.register("ridge")
def ridge(data: RouterData) -> Tensor:
    """argmin_W Σ_t ‖W x_t − y_t‖² + λ ‖W − W₀‖² with y the log Σ exp of members' logits, W₀ dominant rows: [K, p].

    Directions in which no token lies keep the dominant rows, groups of one expert theirs altogether.
    Raises `CheckpointError` where the router is not linear.
    """
    check_linear(data)
    start, gram = data.rows[list(data.dominants)].double(), data.gram
    moment = sum(((y - x @ start.T).T @ x for x, y in data.chunks()), torch.zeros_like(start))
    penalty = STRENGTH * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    return start + torch.linalg.solve(gram + penalty, moment, left=False)


def check_linear(data: RouterData) -> None:
    """Raise `CheckpointError` where the model's logits are not inputs times rows: no other rows can be fitted then."""
    change = (data.inputs.float() @ data.rows.float().T - data.logits.float()).abs().max()
    if change > ROUNDING * data.logits.abs().max():
        raise CheckpointError(
            f"{data.layer}: logits of the source's router differ from its tokens times the checkpoint's rows, by up to "
            f"{change:.3g}: no rows can be fitted; take those of 'dominant'"
        )


STEPS = 100
TOLERANCE = 1e-9
"""Of the largest entry of the gradient, in whitened coordinates."""
FLOOR = 1e-6
"""Of the inputs' mean square: what is added to it in every direction."""


@ROWS.register("cross-entropy")
def cross_entropy(data: RouterData) -> Tensor:
    """argmin_W −Σ_t p_t · log softmax(W x_t), p the members' probabilities summed by group, from `ridge` on: [K, p].

    A convex problem, solved by L-BFGS in coordinates in which the inputs are white: z = W C with Σ x xᵀ / T = C Cᵀ.
    Softmax does not see what all rows have in common; that stays as `ridge` has it, which matters to routers that
    score by a sigmoid.
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
    """Mean cross-entropy over the tokens, in nats, and its gradient by the rows [K, p]."""
    loss, slope = 0.0, torch.zeros_like(rows)
    for x, y in data.chunks():
        wanted, found = y.softmax(1), (x @ rows.T).log_softmax(1)
        loss -= float((wanted * found).sum())
        slope += (found.exp() - wanted).T @ x
    return loss / len(data.inputs), slope / len(data.inputs)


def _root(data: RouterData) -> Tensor:
    """Lower triangular C with C Cᵀ = Σ x xᵀ / T, and a little of the identity, lest it be singular: [p, p]."""
    gram = data.gram / len(data.inputs)
    return torch.linalg.cholesky(gram + FLOOR * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype))


def _unwhitened(z: Tensor, root: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root, z, upper=False, left=False)


def agreement(data: RouterData, rows: Tensor) -> float:
    """Share of tokens whose largest of K logits, by `rows` [K, p], is that of the group with the largest of E logits.

    Corrections that some routers add for the selection alone do not count, on either side.
    """
    label = torch.full((data.logits.shape[1],), -1)
    for k, group in enumerate(data.members):
        label[list(group)] = k
    before = label[data.logits.masked_fill(label < 0, float("-inf")).argmax(1)]
    after = (data.inputs.double() @ rows.T).argmax(1)
    return float((before == after).double().mean())
