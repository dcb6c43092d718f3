"""From the clusters that a library finds to exactly K groups in the order of their use."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from mcsmoe.grouping.budget import by_use
from mcsmoe.grouping.registry import Grouper, Problem

DECIMALS = 12
"""Digits that count: rounding errors below would decide ties, and differ between two runs of a matrix product."""

Clustering = Callable[[Tensor, int, int], Tensor]
"""(similarity [E, E] float64, K, seed) → any label of each expert [E], at most K different ones; 1 < K < E."""


def grouper(clustering: Clustering) -> Grouper:
    """The grouper that divides a layer by `clustering`, the dominant experts being no more than their number."""

    @wraps(clustering)
    def group(problem: Problem) -> Tensor:
        experts, groups = len(problem.frequency), len(problem.dominant)
        if groups in (1, experts):
            labels = torch.arange(experts) % groups  # no choice: spare the similarity
        else:
            similarity = problem.similarity().double().round(decimals=DECIMALS)
            labels = exactly(groups, clustering(similarity, groups, problem.seed), similarity)
        return most_used_first(labels, problem.frequency)

    return group


def exactly(groups: int, labels: Tensor, similarity: Tensor) -> Tensor:
    """Labels 0 … groups−1 [E] from at most as many clusters `labels` [E].

    As long as one is missing, the expert that is on average least similar to the others of its cluster
    becomes one of its own; ties go to the lower id.
    """
    _, labels = labels.unique(return_inverse=True)
    for new in range(int(labels.max()) + 1, groups):
        together = (labels[:, None] == labels).fill_diagonal_(False)  # [E, E]
        others = together.sum(dim=1)  # [E]
        mean = (similarity * together).sum(dim=1) / others.clamp(min=1)  # [E]
        labels[mean.masked_fill(others == 0, torch.inf).argmin()] = new
    return labels


def most_used_first(labels: Tensor, frequency: Tensor) -> Tensor:
    """`labels` [E] renumbered: groups in descending order of their most used member, ties to the lower id."""
    new: dict[int, int] = {}
    for e in by_use(frequency):
        new.setdefault(int(labels[e]), len(new))
    return torch.tensor([new[label] for label in labels.tolist()])


def embed(similarity: Tensor) -> Tensor:
    """Points [E, E], a row an expert, whose inner products are the similarities [E, E], to `DECIMALS` digits.

    A similarity that no inner product has is replaced by the nearest that is one: negative eigenvalues
    become 0. So do those that only rounding tells from 0, whose roots would not be small. The symmetric
    root, because it is unique: eigenvectors of equal eigenvalues are any.
    """
    values, vectors = torch.linalg.eigh(similarity)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return ((vectors * values.where(values > noise, 0.0).sqrt()) @ vectors.T).round(decimals=DECIMALS)
