"""Normalised cuts: k-means on the leading eigenvectors of the graph whose edges are the similarities."""

import warnings

import torch
from torch import Tensor

from mcsmoe.grouping.clustering import grouper
from mcsmoe.grouping.registry import GROUPERS


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
