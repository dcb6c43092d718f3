"""How the members of a group become one expert, and a checkpoint with a plan applied.

    from mcsmoe.merging import merge_model

    merge_model(observer, plan, statistics, gradients, directory)  # written and verified

`write_merged` applies a plan to a checkpoint without a model, given what was measured of it as `Material`.

A rule is a function of `Members`, registered by name with what it needs:
`@RULES.register("fisher", needs="gradients")`; so are alignments, which put the members' neurons into one order first.
"""

from mcsmoe.merging.apply import (
    ALIGNMENTS,
    REFERENCES,
    Align,
    Material,
    Reference,
    merge_group,
    merge_model,
    write_merged,
)
from mcsmoe.merging.rules import RULES, Members, Rule, combine

__all__ = [
    "ALIGNMENTS",
    "REFERENCES",
    "RULES",
    "Align",
    "Material",
    "Members",
    "Reference",
    "Rule",
    "combine",
    "merge_group",
    "merge_model",
    "write_merged",
]
