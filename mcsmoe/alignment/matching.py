"""The order of an expert's hidden neurons that fits a reference best, and how much it helps."""

import math
from dataclasses import dataclass

from torch import Tensor

from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.costs import ROWS, ActivationMoments, activation_cost, by_neuron, weight_cost
from mcsmoe.architectures.layer import Expert, Layout


@dataclass(frozen=True)
class Match:
    """New neuron i = old neuron `perm[i]` [f]; `before`, `after`: the objective, normalised to at most 1."""

    perm: Tensor
    before: float
    after: float


def weight_match(reference: Expert, expert: Expert, layout: Layout) -> Match:
    """Weight matching (paper §3.1); the objective is the cosine of the two experts' weights."""
    scale = _length(reference, layout) * _length(expert, layout)
    return _match(weight_cost(reference, expert, layout), scale)


def activation_match(moments: ActivationMoments) -> Match:
    """Activation matching; the objective is the mean correlation of matched neurons."""
    return _match(activation_cost(moments), len(moments.reference))


def _length(expert: Expert, layout: Layout) -> float:
    parts = (by_neuron(name, expert, layout) for name in layout if layout[name].hidden_axis is not None)
    return math.sqrt(sum(float(rows.double().square().sum()) for part in parts for rows in part.split(ROWS)))


def _match(cost: Tensor, scale: float) -> Match:
    perm = assign(cost)
    scale = scale or 1.0  # an expert of zeros matches anything at 0
    before = cost.diagonal().double().sum() / scale
    after = cost.gather(1, perm[:, None]).double().sum() / scale
    return Match(perm, float(before), float(after))
