"""Members count alike."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import combine
from mcsmoe.merging.registry import RULES


@RULES.register("average")
def average(members: Sequence[Expert], weights: Tensor) -> Expert:
    """W = Σ W_e / m, whatever the frequencies (the paper's baseline "averaging")."""
    return combine(members, torch.ones_like(weights))
