"""Sums that need every expert on tokens that did not select it: outputs, and the errors of averaged pairs."""

from collections.abc import Callable

import torch
from torch import Tensor

from mcsmoe.architectures.experts import forward
from mcsmoe.architectures.layer import Activation, Expert, MoELayer, Role
from mcsmoe.routing.statistics import LayerStatistics

CHUNK = 512
"""Tokens that all experts of a layer are computed on at once; bounds memory at E·CHUNK·f numbers."""


def add_outputs(sums: LayerStatistics, layer: MoELayer, x: Tensor, expert: Callable[[int], Expert]) -> None:
    """Add the outputs of every expert on all tokens x [T, d] to `all_outputs` and `output_gram`, in place."""
    assert sums.all_outputs is not None
    assert sums.output_gram is not None
    experts = [expert(e) for e in range(layer.experts)]
    for part in x.split(CHUNK):
        y = torch.stack([forward(each, layer.layout, layer.activation, part) for each in experts]).double()
        sums.all_outputs += y.sum(1)
        sums.output_gram += y.flatten(1) @ y.flatten(1).T  # over tokens and dimensions, [E, n·d]


def add_pair_errors(
    sums: LayerStatistics, layer: MoELayer, x: Tensor, chosen: Tensor, expert: Callable[[int], Expert]
) -> None:
    """Add Σ ‖f_i(x) − f_ij(x)‖² over the tokens of expert i to `pair_errors[i, j]`, in place.

    f_ij is the expert whose weights are the plain averages of those of i and j. x: [T, d]; chosen: [T, E],
    true where a token selects an expert.
    """
    assert sums.pair_errors is not None
    experts = [expert(e) for e in range(layer.experts)]
    stacks = {role: torch.stack([each[name] for each in experts]) for name, role in layer.layout.items()}
    for i in chosen.any(0).nonzero().flatten().tolist():
        for part in x[chosen[:, i]].split(CHUNK):
            y = _averaged_with(i, stacks, layer.activation, part)
            sums.pair_errors[i] += (y - y[i]).double().square().sum((1, 2))  # paired with itself, i is what it is


def _averaged_with(i: int, stacks: dict[Role, Tensor], activation: Activation, x: Tensor) -> Tensor:
    """Outputs [E, n, d] on tokens x [n, d] of the averages of expert i with every expert."""

    def average(of: Tensor) -> Tensor:
        return (of + of[i]) / 2

    def projected(weight: Role, bias: Role) -> Tensor:
        # In-projections are linear: those of an averaged pair give the mean of what both give.
        pre = x @ stacks[weight].mT  # [E, n, f]
        return average(pre if bias not in stacks else pre + stacks[bias][:, None])

    gate = projected(Role.GATE, Role.GATE_BIAS) if Role.GATE in stacks else None
    inner = activation(gate, projected(Role.UP, Role.UP_BIAS))
    y = inner @ average(stacks[Role.DOWN]).mT
    return y if Role.DOWN_BIAS not in stacks else y + average(stacks[Role.DOWN_BIAS])[:, None]
