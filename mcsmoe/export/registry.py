"""Where the K router rows of a stock checkpoint come from, by name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

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
