"""Groupers by cluster analysis: a library finds clusters, which become exactly K groups, most important first."""

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
"""Decimals kept: smaller rounding errors differ between two runs of a matrix product, and would decide ties."""

Clustering = Callable[[Tensor, int, int], Tensor]
"""(similarity [E, E] float64, K, seed) → arbitrary labels of the experts [E], at most K different; 1 < K < E."""


def grouper(clustering: Clustering) -> Grouper:
    """Make a grouper of `clustering`; of the dominant experts, it uses only their number K."""

    @wraps(clustering)
    def group(problem: Problem) -> Tensor:
        experts, groups = len(problem.importance), len(problem.dominant)
        if groups in (1, experts):
            labels = torch.arange(experts) % groups  # no choice, so the similarity is not needed
        else:
            similarity = problem.similarity().double().round(decimals=DECIMALS)
            labels = exactly(groups, clustering(similarity, groups, problem.seed), similarity)
        return most_important_first(labels, problem.importance)

    return group


def exactly(groups: int, labels: Tensor, similarity: Tensor) -> Tensor:
    """Split clusters until there are exactly `groups`: labels [E] in 0 … groups−1 from at most as many `labels` [E].

    Each time, the expert that is on average least similar to the others of its cluster gets a cluster of its own;
    ties go to the lower id.
    """
    _, labels = labels.unique(return_inverse=True)
    for new in range(int(labels.max()) + 1, groups):
        together = (labels[:, None] == labels).fill_diagonal_(False)  # [E, E]
        others = together.sum(dim=1)  # [E]
        mean = (similarity * together).sum(dim=1) / others.clamp(min=1)  # [E]
        labels[mean.masked_fill(others == 0, torch.inf).argmin()] = new
    return labels


def most_important_first(labels: Tensor, importance: Tensor) -> Tensor:
    """Renumber `labels` [E], groups in descending order of their most important member; ties go to the lower id."""
    new: dict[int, int] = {}
    for e in by_importance(importance):
        new.setdefault(int(labels[e]), len(new))
    return torch.tensor([new[label] for label in labels.tolist()])


def embed(similarity: Tensor) -> Tensor:
    """Points [E, E], one row per expert, whose inner products are the similarities [E, E], to `DECIMALS` digits.

    Negative eigenvalues become 0, which gives the nearest matrix of inner products. So do positive ones within
    rounding of 0, because their roots would not be small. The symmetric root is used because it is unique, while
    the eigenvectors of equal eigenvalues are arbitrary.
    """
    values, vectors = torch.linalg.eigh(similarity)
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return ((vectors * values.where(values > noise, 0.0).sqrt()) @ vectors.T).round(decimals=DECIMALS)


Linkage = Literal["average", "single", "complete", "ward"]


def hierarchical(method: Linkage, similarity: Tensor, groups: int, seed: int) -> Tensor:
    """Labels [E] of exactly `groups` clusters, even with ties; `seed` is not used.

    The distance of two experts is 1 − similarity. Ward needs Euclidean distances and uses those of the points of
    `embed`. Average linkage is the grouping of HC-SMoE (arXiv 2410.08589).
    """
    if method == "ward":
        distance = pdist(embed(similarity).numpy())
    else:
        distance = squareform(1 - similarity.numpy(), checks=False)
    experts = len(similarity)
    labels = torch.arange(experts)
    # Take the first merges instead of cutting at a height: with ties, a cut gives another number of clusters.
    merges = linkage(distance, method)[: experts - groups, :2]
    for i, (a, b) in enumerate(merges.astype(int).tolist()):
        labels[(labels == a) | (labels == b)] = experts + i
    return labels


for _linkage in get_args(Linkage):
    GROUPERS.register(f"hierarchical-{_linkage}")(grouper(partial(hierarchical, _linkage)))


STARTS = 30
"""Seeded starts: with 10, the best partition was missed in 6 of 40 layers of seven experts; with 30, in none."""


@GROUPERS.register("k-means")
@grouper
def k_means(similarity: Tensor, groups: int, seed: int) -> Tensor:
    """Labels [E] of at most `groups` clusters: the best of `STARTS` seeded starts; ties go to the earlier start."""
    from sklearn.cluster import KMeans  # slow to import (about 1 s), and few recipes need it

    points = embed(similarity).numpy()
    seeds = [(seed * STARTS + start) % 2**32 for start in range(STARTS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters: `exactly` repairs it
        # With `n_init`, the last bits, which depend on the number of threads, would decide between equal starts.
        starts = [KMeans(groups, n_init=1, random_state=own).fit(points) for own in seeds]
    best = min(starts, key=lambda model: round(model.inertia_, DECIMALS))
    return torch.from_numpy(best.labels_).long()


@GROUPERS.register("spectral")
@grouper
def spectral(similarity: Tensor, groups: int, seed: int) -> Tensor:
    """Labels [E] of at most `groups` clusters by spectral clustering (Shi and Malik 2000); similarities must be ≥ 0."""
    from sklearn.cluster import SpectralClustering  # slow to import (about 1 s), and few recipes need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an expert with similarity 0 to all others may join any cluster
        model = SpectralClustering(groups, affinity="precomputed", n_init=10, random_state=seed % 2**32)
        labels = model.fit_predict(similarity.numpy())
    return torch.from_numpy(labels).long()


@GROUPERS.register("random")
def random(problem: Problem) -> Tensor:
    """Labels [E]: K random experts found the groups; each other expert joins a group drawn uniformly."""
    experts, groups = len(problem.importance), len(problem.dominant)
    generator = torch.Generator().manual_seed(problem.seed)
    labels = torch.randint(groups, (experts,), generator=generator)
    labels[torch.randperm(experts, generator=generator)[:groups]] = torch.arange(groups)
    return most_important_first(labels, problem.importance)
