"""ZipIt! (Stoica et al., arXiv 2305.03053): similar hidden neurons are merged, within and across members."""

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from torch import Tensor

from mcsmoe.alignment.activations import activations
from mcsmoe.alignment.matching import ActivationMoments, activation_similarity, by_neuron
from mcsmoe.families import Expert, Layout, Role
from mcsmoe.merging.rules import RULES, Members


@RULES.register("zipit")
def zipit(members: Members) -> Expert:
    """Merge the m·f hidden neurons of all members down to f; the similarity is the cosine of their weights.

    Peak memory is 2 (m·f)² doubles (m·f = 12288: 2.4 GB); a group's capacity bounds m.
    """
    return _zipped(members, _cosines(_weights(members)))


@RULES.register("zipit-activation", looks=True)
def zipit_activation(members: Members) -> Expert:
    """As `zipit`, but the similarity is the correlation of activations on the tokens routed to any member.

    Neurons that are constant on these tokens correlate with nothing; among themselves, the cosine of their weights
    decides.
    """
    return _zipped(members, _correlations(members))


def _weights(members: Members) -> Tensor:
    """Weights [m·f, n] of each hidden neuron, float64: in-projection rows and biases, and its out-projection column."""

    def rows(expert: Expert, layout: Layout) -> Tensor:
        return torch.cat(
            [by_neuron(name, expert, layout) for name in layout if layout[name].hidden_axis is not None], 1
        )

    return torch.cat([rows(expert, members.layer.layout) for expert in members.experts]).double()


def _cosines(rows: Tensor) -> Tensor:
    length = rows.norm(dim=1, keepdim=True)
    # An extra coordinate makes rows of zeros equal to each other: cosine 1, as for any two equal rows.
    unit = torch.cat([rows / torch.where(length > 0, length, 1.0), (length == 0).double()], 1)
    return unit @ unit.T


def _correlations(members: Members) -> Tensor:
    moments = ActivationMoments.zeros(len(members.experts) * members.layer.d_ff)
    for z in activations(members.layer, members.experts, members.inputs()):
        moments.add(z, z)
    found = activation_similarity(moments)
    still = (found.diagonal() < 0.5).nonzero().flatten()  # a varying neuron correlates at 1 with itself
    # Copies of a constant neuron must be merged before neurons that are merely similar.
    found[still[:, None], still] = _cosines(_weights(members)[still])
    return found


def _zipped(members: Members, similarity: Tensor) -> Expert:
    """Merge by clusters of hidden neurons: average in-projections per cluster; sum out-projections, divided by m.

    In ZipIt!'s terms: the merge matrix averages features, the unmerge matrix copies them back into each member, and
    the members' outputs are averaged.
    """
    labels, count = clusters(similarity, members.layer.d_ff), len(members.experts)
    sizes = labels.bincount()

    def merged(name: str, role: Role) -> Tensor:
        tensors = [expert[name] for expert in members.experts]
        if role.hidden_axis is None:
            total = torch.stack(tensors).double().sum(0) / count
        else:
            neurons = torch.cat(tensors, role.hidden_axis).double().movedim(role.hidden_axis, -1)  # [..., m·f]
            total = neurons.new_zeros(*neurons.shape[:-1], len(sizes)).index_add_(-1, labels, neurons)
            total = (total / (count if role is Role.DOWN else sizes)).movedim(-1, role.hidden_axis)
        return total.to(tensors[0].dtype).contiguous()

    return {name: merged(name, role) for name, role in members.layer.layout.items()}


def clusters(similarity: Tensor, count: int) -> Tensor:
    """Cluster n neurons: labels [n] int64, after merging the two most similar until `count` clusters are left.

    Similarities of merged neurons are averaged: this is agglomerative clustering with average linkage. Clusters are
    numbered in the order of their first neurons. Overwrites `similarity` [n, n].
    """
    distance = squareform(similarity.neg_().add_(1).clamp_(min=0).numpy(), checks=False)
    size = len(similarity)
    merges = linkage(distance, "average")[: size - count, :2].astype(int)
    # Merge i makes node size + i. A cut at a distance would leave fewer clusters if there are ties.
    made = np.repeat(np.arange(size, size + len(merges)), 2)
    nodes = size + len(merges)
    links = coo_array((np.ones(len(made)), (merges.ravel(), made)), shape=(nodes, nodes))
    return torch.from_numpy(connected_components(links, directed=False)[1][:size]).long()
