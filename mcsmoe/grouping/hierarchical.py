"""Agglomerative clustering: the two nearest clusters become one until K are left."""

from functools import partial
from typing import Literal, get_args

import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from mcsmoe.grouping.clustering import embed, grouper
from mcsmoe.grouping.registry import GROUPERS

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
