"""REPAIR (Jordan et al., arXiv 2211.08403): the plain mean, with the members' variance of hidden neurons restored."""

import torch
from torch import Tensor

from mcsmoe.alignment.matching import deviation
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.errors import StatisticsError
from mcsmoe.families import Expert, Role
from mcsmoe.merging.rules import RULES, Members, combine

IN_PROJECTIONS = {Role.GATE: Role.GATE_BIAS, Role.UP: Role.UP_BIAS}


@RULES.register("repair", needs="input-gram")
def repair(members: Members) -> Expert:
    """Average the members and rescale every pre-activation w·x + b, as seen over all calibration tokens x of the layer.

    Averaging shrinks the standard deviation where the members' neurons disagree; rescaling makes it the mean of the
    members' deviations. With biases, the mean stays the mean of the members' means. Without biases, the mean is scaled
    along with the deviation. A constant neuron is left as it is.
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
    """Mean [f] and standard deviation [f] of w·x over all tokens of the layer, for weight [f, d], in closed form."""
    # Every token selects k experts, so both sums over experts count it k times.
    mean = statistics.input_sums.sum(0) / statistics.counts.sum().clamp(min=1)  # [d]
    if statistics.input_gram is None:
        raise StatisticsError("rule 'repair' needs 'input-gram', which was not collected")
    square = statistics.input_gram / statistics.tokens.clamp(min=1)  # [d, d]
    exact = weight.double()
    mean_square = (exact @ square).mul_(exact).sum(1)  # [f]: wᵀ E[x xᵀ] w
    return exact @ mean, deviation(mean_square, exact @ mean)
