"""Control: groups drawn at random."""

import torch
from torch import Tensor

from mcsmoe.grouping.clustering import most_used_first
from mcsmoe.grouping.registry import GROUPERS, Problem


@GROUPERS.register("random")
def random(problem: Problem) -> Tensor:
    """Labels [E]: K experts drawn at random found the groups, each other one joins any with equal chance."""
    experts, groups = len(problem.frequency), len(problem.dominant)
    generator = torch.Generator().manual_seed(problem.seed)
    labels = torch.randint(groups, (experts,), generator=generator)
    labels[torch.randperm(experts, generator=generator)[:groups]] = torch.arange(groups)
    return most_used_first(labels, problem.frequency)
