"""The dominant expert stands for its group and the others are dropped: pruning."""

from mcsmoe.architectures.layer import Expert
from mcsmoe.merging.registry import RULES, Members


@RULES.register("dominant")
def dominant(members: Members) -> Expert:
    """The dominant expert, bit-identical where it is the reference of the alignment or none is aligned."""
    return members.experts[members.dominant]
