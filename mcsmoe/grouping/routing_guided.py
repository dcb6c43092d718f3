"""Every expert joins the dominant expert that the router treats most alike: the paper's grouping."""

import torch
from torch import Tensor

from mcsmoe.grouping.registry import GROUPERS, Problem


@GROUPERS.register("routing-guided")
def routing_guided(problem: Problem) -> Tensor:
    """Labels [E]: each dominant expert founds a group, most used first; the others join the most similar one.

    Paper §3.2. Equal similarities go to the more used dominant expert.
    """
    dominant = torch.tensor(problem.dominant)
    labels = problem.similarity()[:, dominant].argmax(dim=1)  # the first of equal ones
    labels[dominant] = torch.arange(len(dominant))
    return labels
