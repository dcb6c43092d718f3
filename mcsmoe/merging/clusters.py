"""Which hidden neurons become one."""

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor


def clusters(similarity: Tensor, count: int) -> Tensor:
    """Cluster [n] int64 of each of n neurons, the two most alike merged until `count` clusters are left.

    Similarities of merged neurons are averaged, which makes this agglomerative clustering with average
    linkage. Clusters are in the order of their first neurons. Overwrites `similarity` [n, n].
    """
    distance = squareform(similarity.neg_().add_(1).clamp_(min=0).numpy(), checks=False)
    size = len(similarity)
    merges = linkage(distance, "average")[: size - count, :2].astype(int)
    # Merge i makes node size + i. Cutting at a distance instead would leave fewer clusters where there are ties.
    made = np.repeat(np.arange(size, size + len(merges)), 2)
    nodes = size + len(merges)
    links = coo_array((np.ones(len(made)), (merges.ravel(), made)), shape=(nodes, nodes))
    return torch.from_numpy(connected_components(links, directed=False)[1][:size]).long()
