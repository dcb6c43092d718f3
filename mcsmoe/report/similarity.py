"""Section: how alike the experts of each layer are, with the borders of the groups."""

from collections.abc import Mapping, Sequence

import numpy as np

from mcsmoe.evaluation.heatmaps import similarity_groups
from mcsmoe.report.inline import inline
from mcsmoe.report.section import Section, section
from mcsmoe.report.use import Grouping


def similarity_section(similarity: Mapping[str, np.ndarray], found: Sequence[Grouping]) -> Section:
    """`similarity` [E, E] of each layer, drawn once for each of `groupings`, or without groups if there is none."""
    pictures = []
    for i, grouping in enumerate(found):
        groups = {layer.name: [group.experts for group in layer.groups] for layer in grouping.layers if layer.merged}
        names = ", ".join(grouping.methods)
        figure = similarity_groups(similarity, groups, names)
        pictures.append(inline(figure, f"similarity-{i}", f"similarity of experts with the groups of {names}"))
    if not pictures:
        pictures.append(inline(similarity_groups(similarity, {}, ""), "similarity", "similarity of experts"))
    return section("Similarity of experts", "similarity.html", pictures=pictures)
