"""Groupers by cluster analysis: from clusters that a library finds to exactly K groups, the most important first."""

import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Literal, get_args

import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from mcsmoe.grouping.budget import by_importance
from mcsmoe.grouping.group import GROUPERS, Grouper, Problem

DECIMALS = 12
"""Digits that count: rounding errors below would decide ties, and differ between two runs of a matrix product."""

Clustering = Callable[[Tensor, int, int], Tensor]
"""(similarity [E, E] float64, K, seed) → any label of each expert [E], at most K different ones; 1 < K < E."""


def grouper(clustering: Clustering) -> Grouper:
    """The grouper that divides a layer by `clustering`, the dominant experts being no more than their number."""

    @wraps(clustering)
    def group(problem: Problem) -> Tensor:
        experts, groups = len(problem.importance), len(problem.dominant)
        if groups in (1, experts):
            labels = torch.arange(experts) % groups  # no choice: spare the similarity
        else:
            similarity = problem.similarity().double().round(decimals=DECIMALS)
            labels = exactly(groups, clustering(similarity, groups, problem.seed), similarity)
        return most_important_first(labels, problem.importance)

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


def most_important_first(labels: Tensor, importance: Tensor) -> Tensor:
    """`labels` [E] renumbered: groups in descending order of their most important member, ties to the lower id."""
    new: dict[int, int] = {}
    for e in by_importance(importance):
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


Linkage = Literal["average", "single", "complete", "ward"]


def hierarchical(method: Linkage, similarity: Tensor, groups: int, seed: int) -> Tensor:
    """Labels [E] of exactly `groups` clusters, whatever ties there are; `seed` is not used.

    Distance of two experts: 1 − similarity; for Ward, which needs Euclidean distances, that of the points
    whose inner products are the similarities. Average linkage is the grouping of HC-SMoE (arXiv 2410.08589).
    """
    if method == "ward":
        distance = pdist(embed(similarity).numpy())
    else:
        distance = squareform(1 - similarity.numpy(), checks=False)
    experts = len(similarity)
    labels = torch.arange(experts)
    # The first merges, not a height: a cut through ties would give another number of clusters.
    merges = linkage(distance, method)[: experts - groups, :2]
    for i, (a, b) in enumerate(merges.astype(int).tolist()):
        labels[(labels == a) | (labels == b)] = experts + i
    return labels


for _linkage in get_args(Linkage):
    GROUPERS.register(f"hierarchical-{_linkage}")(grouper(partial(hierarchical, _linkage)))


STARTS = 30
"""Ten missed the best of all partitions in 6 of 40 layers of seven experts, thirty in none."""


@GROUPERS.register("k-means")
@grouper
def k_means(similarity: Tensor, groups: int, seed: int) -> Tensor:
    """Labels [E] of at most `groups` clusters: the best of `STARTS` seeded starts, the first of equal ones."""
    from sklearn.cluster import KMeans  # a second to import, which few recipes need

    points = embed(similarity).numpy()
    seeds = [(seed * STARTS + start) % 2**32 for start in range(STARTS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters: repaired by `exactly`
        # Not its own choice among starts, which follows the last bits, and they the number of threads.
        starts = [KMeans(groups, n_init=1, random_state=own).fit(points) for own in seeds]
    best = min(starts, key=lambda model: round(model.inertia_, DECIMALS))
    return torch.from_numpy(best.labels_).long()


@GROUPERS.register("spectral")
@grouper
def spectral(similarity: Tensor, groups: int, seed: int) -> Tensor:
    """Labels [E] of at most `groups` clusters (Shi and Malik 2000); similarities are not negative."""
    from sklearn.cluster import SpectralClustering  # a second to import, which few recipes need

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experts at 0 from all others: any cluster is right for them
        model = SpectralClustering(groups, affinity="precomputed", n_init=10, random_state=seed % 2**32)
        labels = model.fit_predict(similarity.numpy())
    return torch.from_numpy(labels).long()


@GROUPERS.register("random")
def random(problem: Problem) -> Tensor:
    """Labels [E]: K experts drawn at random found the groups, each other one joins any with equal chance."""
    experts, groups = len(problem.importance), len(problem.dominant)
    generator = torch.Generator().manual_seed(problem.seed)
    labels = torch.randint(groups, (experts,), generator=generator)
    labels[torch.randperm(experts, generator=generator)[:groups]] = torch.arange(groups)
    return most_important_first(labels, problem.importance)
