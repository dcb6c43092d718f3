"""Members count by how often the router uses them: the paper's rule."""

from collections.abc import Sequence

from torch import Tensor

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import combine
from mcsmoe.merging.registry import RULES


@RULES.register("frequency")
def frequency(members: Sequence[Expert], weights: Tensor) -> Expert:
    """W = Σ ν_e W_e / Σ ν_e (paper eq. 2); the plain mean where no member is ever used."""
    return combine(members, weights)
