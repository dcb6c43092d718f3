"""The hidden activations of experts on the tokens of their layer, summed up for matching."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mcsmoe.alignment.matching import ActivationMoments, promoted
from mcsmoe.calibration.observer import LayerTokens
from mcsmoe.families import Expert, MoELayer, TensorSource
from mcsmoe.families.experts import hidden, read_expert

CHUNK = 4096
"""Tokens per chunk of activations."""


def activations(layer: MoELayer, experts: Sequence[Expert], x: Tensor) -> Iterator[Tensor]:
    """Yield the activations [T, m·f] of m experts, side by side, on tokens x [T, d], in chunks [n, m·f].

    Computed in float32 or better.
    """
    exact = [{name: promoted(tensor) for name, tensor in expert.items()} for expert in experts]
    for part in promoted(x).split(CHUNK):
        yield torch.cat([hidden(expert, layer.layout, layer.activation, part) for expert in exact], 1)


def activation_moments(layer: MoELayer, x: Tensor, reference: Expert, expert: Expert) -> ActivationMoments:
    """Sum up the activations of two experts on tokens x [T, d]."""
    moments = ActivationMoments.zeros(layer.d_ff)
    for ours, theirs in zip(activations(layer, [reference], x), activations(layer, [expert], x), strict=True):
        moments.add(ours, theirs)
    return moments


def pair_moments(
    source: TensorSource, layer: MoELayer, tokens: LayerTokens, reference: int, others: Sequence[int]
) -> Iterator[tuple[int, ActivationMoments]]:
    """Yield each of `others` with its moments over the tokens routed to it or to `reference`; one at a time."""
    target = read_expert(source, layer, reference)
    for e in others:
        x = tokens.routed_to([reference, e])
        yield e, activation_moments(layer, x, target, read_expert(source, layer, e))
