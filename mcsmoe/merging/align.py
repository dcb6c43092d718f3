"""Alignment inside a group: the order of each member's hidden neurons that fits the reference best."""

from collections.abc import Callable, Sequence

from torch import Tensor

from mcsmoe.alignment.activations import pair_moments
from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.costs import activation_cost, weight_cost
from mcsmoe.architectures.experts import read_expert
from mcsmoe.architectures.layer import MoELayer, TensorSource
from mcsmoe.grouping.plan import Group
from mcsmoe.merging.material import Material
from mcsmoe.progress import progress

Align = Callable[[TensorSource, MoELayer, int, Sequence[int], Material], dict[int, Tensor]]
"""(checkpoint, layer, reference, other members) → new order [f] of each member's neurons; none: as it is."""


def by_weight(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], material: Material
) -> dict[int, Tensor]:
    """Weight matching (paper §3.1; Git Re-Basin)."""
    target = read_expert(source, layer, reference)
    shown = progress(others, f"align experts of {layer.name}", late=True)
    return {e: assign(weight_cost(target, read_expert(source, layer, e), layer.layout)) for e in shown}


def by_activation(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], material: Material
) -> dict[int, Tensor]:
    """Activation matching: correlation of hidden neurons on the tokens routed to either expert."""
    pairs = pair_moments(source, layer, material.tokens(layer), reference, others)
    shown = progress(pairs, f"align experts of {layer.name}", len(others), late=True)
    return {e: assign(activation_cost(moments)) for e, moments in shown}


def unaligned(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], material: Material
) -> dict[int, Tensor]:
    """Neurons stay where they are."""
    return {}


ALIGNMENTS: dict[str, Align] = {"weight": by_weight, "activation": by_activation, "none": unaligned}
REFERENCES: dict[str, Callable[[Group], int]] = {
    "dominant": lambda group: group.dominant,
    "first": lambda group: group.members[0],
}
