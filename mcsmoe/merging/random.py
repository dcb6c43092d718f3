"""Members count by chance: what any other choice of weights has to beat."""

import torch

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import combine
from mcsmoe.merging.registry import RULES, Members


@RULES.register("random")
def random(members: Members) -> Expert:
    """W = Σ w_e W_e with w drawn uniformly from the simplex: exponential variates, divided by their sum."""
    generator = torch.Generator().manual_seed(members.seed)
    return combine(members.experts, torch.empty_like(members.weights).exponential_(generator=generator))
