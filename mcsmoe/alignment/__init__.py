"""In which order the hidden neurons of an expert fit those of another best: the order changes no function.

    from mcsmoe.alignment import align, assign, weight_similarity

    order = assign(weight_similarity(reference, expert, layout))  # [f]: new neuron i = old neuron order[i]
    expert = align(expert, reference, layout)                     # the same in one call

`matching` compares neurons by weights or by activations, `assignment` solves for the best order and proves it,
`activations` sums up what experts compute on their tokens, `permute_model` in `permute` aligns every layer of a model.
"""

from mcsmoe.alignment.assignment import assign
from mcsmoe.alignment.matching import ActivationMoments, Match, activation_similarity, align, weight_similarity

__all__ = ["ActivationMoments", "Match", "activation_similarity", "align", "assign", "weight_similarity"]
