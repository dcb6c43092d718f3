"""Every expert joins the dominant expert that the router treats most alike: the paper's grouping."""

import torch
from torch import Tensor

from mcsmoe.grouping.budget import by_use
from mcsmoe.grouping.registry import GROUPERS, Problem, keeps_to_capacity


@GROUPERS.register("routing-guided")
@keeps_to_capacity
def routing_guided(problem: Problem) -> Tensor:
    """Labels [E]: each dominant expert founds a group; the others, most used first, join the most similar one.

    Paper §3.2. A group with `capacity` members, its dominant expert included, takes no more. Equal
    similarities go to the more used dominant expert.
    """
    experts, dominant = len(problem.frequency), list(problem.dominant)
    similarity = problem.similarity()[:, dominant]  # [E, K]
    labels = torch.full((experts,), -1)
    labels[dominant] = torch.arange(len(dominant))
    room = torch.full((len(dominant),), (experts if problem.capacity is None else problem.capacity) - 1)
    for e in by_use(problem.frequency):
        if labels[e] < 0:
            k = similarity[e].masked_fill(room == 0, -torch.inf).argmax()  # the first of equal ones
            labels[e] = k
            room[k] -= 1
    return labels
