"""Ablations of the paper's grouping: the most used experts stay as they are, only the others are merged."""

from dataclasses import replace

import torch
from torch import Tensor

from mcsmoe.grouping.registry import GROUPERS, Problem
from mcsmoe.grouping.routing_guided import routing_guided


@GROUPERS.register("non-dominant-into-one")
def non_dominant_into_one(problem: Problem) -> Tensor:
    """Labels [E]: K−1 dominant experts stay single, all others become one."""
    single = len(problem.dominant) - 1
    labels = torch.full((len(problem.frequency),), single)
    labels[list(problem.dominant[:single])] = torch.arange(single)
    return labels


@GROUPERS.register("non-dominant")
def non_dominant(problem: Problem) -> Tensor:
    """Labels [E]: ⌈K/2⌉ dominant experts stay single, the others found the groups that all the rest join.

    At least one takes the rest: with K = 1 none stays single.
    """
    groups = len(problem.dominant)
    single = min(-(-groups // 2), groups - 1)
    labels = routing_guided(replace(problem, dominant=problem.dominant[single:])) + single
    labels[list(problem.dominant[:single])] = torch.arange(single)
    return labels
