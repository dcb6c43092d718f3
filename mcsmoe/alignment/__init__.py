"""Reordering of an expert's hidden neurons to match those of another expert; the order never changes its function.

    from mcsmoe.alignment import align, assign, weight_similarity

    order = assign(weight_similarity(reference, expert, layout))  # [f]: new neuron i = old neuron order[i]
    expert = align(expert, reference, layout)                     # the same in one call

`matching` compares neurons by weights or by activations, `assignment` finds the best order and proves it optimal,
`activations` sums up what experts compute on their tokens, `pairs` matches several experts with one, and
`permute_model` in `permute` aligns a whole model.
"""

from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.matching import ActivationMoments, Match, activation_similarity, align, weight_similarity

__all__ = ["ActivationMoments", "Match", "activation_similarity", "align", "assign", "weight_similarity"]
