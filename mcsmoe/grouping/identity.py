"""No grouping: every expert stays by itself, whatever the budget."""

import torch
from torch import Tensor

from mcsmoe.grouping.registry import GROUPERS, Problem, keeps_to_capacity


@GROUPERS.register("none")
@keeps_to_capacity
def identity(problem: Problem) -> Tensor:
    """Labels 0 … E−1."""
    return torch.arange(len(problem.frequency))
