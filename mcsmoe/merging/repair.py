"""The plain average, its hidden neurons as lively as those of the members: REPAIR (Jordan et al., arXiv 2211.08403)."""

import torch
from torch import Tensor

from mcsmoe.alignment.matching import deviation
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.families import Expert, Role
from mcsmoe.merging.rules import RULES, Members, combine

IN_PROJECTIONS = {Role.GATE: Role.GATE_BIAS, Role.UP: Role.UP_BIAS}


@RULES.register("repair")
def repair(members: Members) -> Expert:
    """The average with every pre-activation w·x + b rescaled over all calibration tokens x of the layer.

    Its standard deviation becomes the mean of the members', which averaging shrinks wherever their neurons
    disagree. With biases its mean is the mean of the members' means, too, as it was before rescaling; without
    biases it grows with the deviation. A neuron that never varies is left as it is.
    """
    merged = combine(members.experts, torch.ones_like(members.weights))
    names = {role: name for name, role in members.layer.layout.items()}
    for weight, bias in IN_PROJECTIONS.items():
        if weight not in names:
            continue
        name, average = names[weight], merged[names[weight]].double()
        wanted = torch.stack([_moments(expert[name], members.statistics)[1] for expert in members.experts]).mean(0)
        mean, found = _moments(average, members.statistics)
        scale = torch.where(found > 0, wanted / found, 1.0)  # [f]
        merged[name] = (scale[:, None] * average).to(merged[name].dtype)
        if bias in names:
            shift = (1 - scale) * mean
            merged[names[bias]] = (merged[names[bias]].double() + shift).to(merged[names[bias]].dtype)
    return merged


def _moments(weight: Tensor, statistics: LayerStatistics) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [f] of w·x over all tokens of the layer, in closed form for weight [f, d]."""
    # Every token selects k experts, so that the sums over experts hold each token k times.
    mean = statistics.input_sums.sum(0) / statistics.counts.sum().clamp(min=1)  # [d]
    square = statistics.input_gram / statistics.tokens.clamp(min=1)  # [d, d]
    exact = weight.double()
    mean_square = (exact @ square).mul_(exact).sum(1)  # [f]: wᵀ E[x xᵀ] w
    return exact @ mean, deviation(mean_square, exact @ mean)
