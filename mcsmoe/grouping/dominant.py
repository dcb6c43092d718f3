"""Groupers around dominant experts: the paper's grouping and its ablations."""

from dataclasses import replace

import torch
from torch import Tensor

from mcsmoe.grouping.budget import by_importance
from mcsmoe.grouping.group import GROUPERS, Problem


@GROUPERS.register("routing-guided", capacity=True)
def routing_guided(problem: Problem) -> Tensor:
    """Labels [E]: each dominant expert founds a group; each other expert joins the most similar of them (paper §3.2).

    Experts choose in descending order of importance. A group with `capacity` members, its dominant expert included,
    is full. Ties go to the more important dominant expert.
    """
    experts, dominant = len(problem.importance), list(problem.dominant)
    similarity = problem.similarity()[:, dominant]  # [E, K]
    labels = torch.full((experts,), -1)
    labels[dominant] = torch.arange(len(dominant))
    room = torch.full((len(dominant),), (experts if problem.capacity is None else problem.capacity) - 1)
    for e in by_importance(problem.importance):
        if labels[e] < 0:
            k = similarity[e].masked_fill(room == 0, -torch.inf).argmax()  # ties: the first
            labels[e] = k
            room[k] -= 1
    return labels


@GROUPERS.register("non-dominant-into-one")
def non_dominant_into_one(problem: Problem) -> Tensor:
    """Labels [E]: the K−1 most important dominant experts stay single; all other experts become one."""
    single = len(problem.dominant) - 1
    labels = torch.full((len(problem.importance),), single)
    labels[list(problem.dominant[:single])] = torch.arange(single)
    return labels


@GROUPERS.register("non-dominant")
def non_dominant(problem: Problem) -> Tensor:
    """Labels [E]: ⌈K/2⌉ dominant experts stay single; the others found groups that all other experts join.

    With K = 1, the only dominant expert founds a group.
    """
    groups = len(problem.dominant)
    single = min(-(-groups // 2), groups - 1)
    labels = routing_guided(replace(problem, dominant=problem.dominant[single:])) + single
    labels[list(problem.dominant[:single])] = torch.arange(single)
    return labels


@GROUPERS.register("none", capacity=True, merges=False)
def identity(problem: Problem) -> Tensor:
    """Labels 0 … E−1: every expert stays by itself."""
    return torch.arange(len(problem.importance))
