"""Reordering the hidden neurons of an expert, which leaves its function unchanged."""

from torch import Tensor

from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.costs import weight_cost
from mcsmoe.architectures.layer import Expert, Layout


def permute(expert: Expert, layout: Layout, perm: Tensor) -> Expert:
    """The expert with new hidden neuron i = old neuron `perm[i]` in every tensor that has hidden neurons.

    Rows of in-projections and their biases move, and columns of the out-projection; other tensors stay.
    """
    return {name: permute_tensor(tensor, name, layout, perm) for name, tensor in expert.items()}


def permute_tensor(tensor: Tensor, name: str, layout: Layout, perm: Tensor) -> Tensor:
    """Tensor `name` of an expert, its hidden neurons reordered."""
    axis = layout[name].hidden_axis
    return tensor if axis is None else tensor.index_select(axis, perm.to(tensor.device))


def align(expert: Expert, reference: Expert, layout: Layout) -> Expert:
    """The expert, its neurons in the order that fits the reference best by weight matching (paper §3.1)."""
    return permute(expert, layout, assign(weight_cost(reference, expert, layout)))
