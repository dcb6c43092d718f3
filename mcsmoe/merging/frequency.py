"""Members count by how often the router uses them: the paper's rule."""

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import combine
from mcsmoe.merging.registry import RULES, Members


@RULES.register("frequency")
def frequency(members: Members) -> Expert:
    """W = Σ ν_e W_e / Σ ν_e (paper eq. 2); the plain mean where no member is ever used."""
    return combine(members.experts, members.weights)
