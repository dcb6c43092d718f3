"""Matching of all experts of one layer to its reference, one expert in memory at a time."""

from collections.abc import Callable, Mapping

from torch import Tensor

from mcsmoe.alignment.activations import LayerTokens, pair_moments
from mcsmoe.alignment.matching import Match, activation_match, weight_match
from mcsmoe.architectures.experts import read_expert
from mcsmoe.architectures.layer import MoELayer, TensorSource
from mcsmoe.progress import progress

Counts = Callable[[], Mapping[str, Tensor]]
"""Gives the tokens that select each expert, by layer; costs forward passes when it is first asked."""
References = Callable[[MoELayer, Counts], int]
"""(layer, counts) → the expert that the others are aligned to."""

REFERENCES: dict[str, References] = {
    "most-used": lambda layer, counts: int(counts()[layer.name].argmax()),
    "first": lambda layer, counts: 0,
}


def weight_matches(source: TensorSource, layer: MoELayer, reference: int) -> dict[int, Match]:
    """Weight matching of every other expert of the layer to expert `reference`."""
    target = read_expert(source, layer, reference)
    others = [e for e in range(layer.experts) if e != reference]
    shown = progress(others, f"match experts of {layer.name}", late=True)
    return {e: weight_match(target, read_expert(source, layer, e), layer.layout) for e in shown}


def activation_matches(source: TensorSource, layer: MoELayer, reference: int, tokens: LayerTokens) -> dict[int, Match]:
    """Activation matching of every other expert to expert `reference`, on the tokens routed to either."""
    others = [e for e in range(layer.experts) if e != reference]
    pairs = pair_moments(source, layer, tokens, reference, others)
    shown = progress(pairs, f"match experts of {layer.name}", len(others), late=True)
    return {e: activation_match(moments) for e, moments in shown}
