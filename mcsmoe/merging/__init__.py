"""How the members of a group become one expert, and a checkpoint with a plan applied.

    from mcsmoe.merging import Material, write_merged

    write_merged(checkpoint, plan, Material(statistics, gradients, tokens), directory)

A rule is a function of `Members`, registered by name with what it needs:
`@RULES.register("fisher", needs="gradients")`; so are alignments, which put the members' neurons into one order first.
"""

from mcsmoe.merging.apply import ALIGNMENTS, REFERENCES, Align, Material, Reference, merge_group, write_merged
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
    "write_merged",
]
