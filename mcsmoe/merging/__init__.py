"""Merging of the members of each group into one expert, and writing a checkpoint with a plan applied.

    from mcsmoe.merging import merge_model

    merge_model(model, plan, statistics, directory)  # written and verified

`write_merged` applies a plan to a checkpoint without loading a model; `Material` holds the measurements it needs.

A rule is a function of `Members`, registered by name with what it needs:
`@RULES.register("fisher", needs="gradients")`. Alignments, which first bring the members' hidden neurons into one
order, are registered in the same way.
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
