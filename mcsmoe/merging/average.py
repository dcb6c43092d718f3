"""Members count alike."""

import torch

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import combine
from mcsmoe.merging.registry import RULES, Members


@RULES.register("average")
def average(members: Members) -> Expert:
    """W = Σ W_e / m, whatever the frequencies (the paper's baseline "averaging")."""
    return combine(members.experts, torch.ones_like(members.weights))
