"""Similarity of the experts of a layer: by what they compute, by their weights, or by what their router does.

    from mcsmoe.similarity import Evidence, similarity

    similarity("router-logits")(Evidence(layer, statistics, checkpoint))  # [E, E] in [0, 1], diagonal 1

A similarity is a function of `Evidence`, registered by name with the entry of `collect.also` that it needs:
`@SIMILARITIES.register("expert-output", needs="outputs")`.
"""

from mcsmoe.similarity.evidence import REVERSE, SIMILARITIES, Evidence, Similarity, cosine, needs, similarity

__all__ = ["REVERSE", "SIMILARITIES", "Evidence", "Similarity", "cosine", "needs", "similarity"]
