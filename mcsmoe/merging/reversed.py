"""Members count by how seldom the router uses them: the opposite of the paper's rule, for comparison."""

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.combine import combine
from mcsmoe.merging.registry import RULES, Members


@RULES.register("reversed")
def reversed_frequency(members: Members) -> Expert:
    """W = Σ (1 − ν_e) W_e / Σ (1 − ν_e)."""
    return combine(members.experts, 1 - members.weights)
