"""Neurons that are alike become one, within a member and across members: ZipIt! (Stoica et al., arXiv 2305.03053)."""

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
    """Of the m·f neurons of all members f are left; alike by the cosine of their weights.

    Peak memory is 2 (m·f)² doubles (m·f = 12288: 2.4 GB); a group's capacity bounds m.
    """
    return _zipped(members, _cosines(_weights(members)))


@RULES.register("zipit-activation", looks=True)
def zipit_activation(members: Members) -> Expert:
    """The same, alike by the correlation of activations on the tokens routed to any member.

    Neurons that never vary there correlate with nothing; among themselves, their weights decide.
    """
    return _zipped(members, _correlations(members))


def _weights(members: Members) -> Tensor:
    """Each neuron [m·f, n] of all members, float64: rows and biases of in-projections, column of the out-projection."""

    def rows(expert: Expert, layout: Layout) -> Tensor:
        return torch.cat(
            [by_neuron(name, expert, layout) for name in layout if layout[name].hidden_axis is not None], 1
        )

    return torch.cat([rows(expert, members.layer.layout) for expert in members.experts]).double()


def _cosines(rows: Tensor) -> Tensor:
    length = rows.norm(dim=1, keepdim=True)
    # One more coordinate for rows of zeros, which are copies of each other like any two equal rows.
    unit = torch.cat([rows / torch.where(length > 0, length, 1.0), (length == 0).double()], 1)
    return unit @ unit.T


def _correlations(members: Members) -> Tensor:
    moments = ActivationMoments.zeros(len(members.experts) * members.layer.d_ff)
    for z in activations(members.layer, members.experts, members.inputs()):
        moments.add(z, z)
    found = activation_similarity(moments)
    still = (found.diagonal() < 0.5).nonzero().flatten()  # a neuron that varies correlates with itself at 1
    # Copies of a dead neuron must be merged before any two that only resemble each other.
    found[still[:, None], still] = _cosines(_weights(members)[still])
    return found


def _zipped(members: Members, similarity: Tensor) -> Expert:
    """Mean of a cluster's in-projections; its out-projections summed up, then averaged over members.

    That is ZipIt!'s merge matrix, which averages features, its unmerge matrix, which copies them back into
    each member, and the average of the members' outputs.
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
