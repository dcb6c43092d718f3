"""Router rows by maximum likelihood."""

import torch
from torch import Tensor

from mcsmoe.export.registry import ROWS, RouterData
from mcsmoe.export.ridge import ridge

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
