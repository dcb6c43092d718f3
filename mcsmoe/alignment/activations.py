"""What reaches a layer on calibration text, and the hidden activations of its experts on it, summed up for matching."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mcsmoe.alignment.matching import ActivationMoments, promoted
from mcsmoe.calibration.watch import Batch, one_by_one
from mcsmoe.checkpoint.streamed import blocks_of
from mcsmoe.families import Expert, Family, MoELayer, Routing, TensorSource
from mcsmoe.families.experts import hidden, read_expert

CHUNK = 4096
"""Tokens whose activations are in memory at once."""


@dataclass(frozen=True)
class LayerTokens:
    """The T real tokens of one layer: inputs [T, d] and the experts that each selects, index [T, k].

    Kept rather than summed up: the sums of one pair of experts take f² doubles, of all pairs more than the
    layer itself, and another forward pass for each pair would take longest.
    """

    inputs: Tensor
    index: Tensor

    def routed_to(self, experts: Sequence[int]) -> Tensor:
        """Inputs [n, d] of the tokens that select any of `experts`."""
        return self.inputs[torch.isin(self.index, torch.tensor(experts)).any(1)]


def layer_tokens(
    model: nn.Module, family: Family, layers: Sequence[MoELayer], batches: Sequence[Batch]
) -> Iterator[tuple[str, LayerTokens]]:
    """Name and tokens of one layer after another; those of one layer are in memory at a time.

    All of a model that is streamed by one pass over the batches, which waits where the last one was taken.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        seen.append((x.cpu(), routing.index.cpu()))

    def taken() -> LayerTokens:
        inputs, index = zip(*seen, strict=True)
        seen.clear()
        return LayerTokens(torch.cat(inputs), torch.cat(index))

    for layer in one_by_one(model, family, layers, batches, see):
        yield layer.name, taken()


class LazyTokens:
    """The tokens of one layer after another, found when they are asked for; those of the last one are kept.

    `load` gives the model and the batches. It is called once, at the first question; nobody else may run the model
    while layers are asked for in their order, which takes the fewest passes.
    """

    def __init__(self, family: Family, load: Callable[[], tuple[nn.Module, Sequence[Batch]]]) -> None:
        self._family, self._load = family, load
        self._loaded: tuple[nn.Module, Sequence[Batch]] | None = None
        self._coming: Iterator[tuple[str, LayerTokens]] = iter(())
        self._ahead: list[str] = []
        self._last: tuple[str, LayerTokens] | None = None

    def __call__(self, layer: MoELayer) -> LayerTokens:
        """The tokens of `layer`."""
        if self._loaded is None:
            self._loaded = self._load()
        while self._last is None or self._last[0] != layer.name:
            self._last = None  # the layer before goes before this one comes
            if layer.name not in self._ahead:
                self._start(*self._loaded, layer)
            self._last = next(self._coming)
            self._ahead.remove(self._last[0])
        return self._last[1]

    def _start(self, model: nn.Module, batches: Sequence[Batch], layer: MoELayer) -> None:
        """Passes that come by `layer` first, and by those after it where that costs less than other passes."""
        layers = self._family.layers(model.config)
        layers = layers[layers.index(layer) :] if blocks_of(model) else [layer]
        self._coming, self._ahead = layer_tokens(model, self._family, layers, batches), [each.name for each in layers]

    def forget(self) -> None:
        """Let go of the model and the tokens; the next question loads them again."""
        self._loaded = self._last = None
        self._coming, self._ahead = iter(()), []


def activations(layer: MoELayer, experts: Sequence[Expert], x: Tensor) -> Iterator[Tensor]:
    """Hidden neurons of m experts, one expert after another, on the tokens x [T, d]: parts [n, m·f] of [T, m·f].

    Computed in float32 or better.
    """
    exact = [{name: promoted(tensor) for name, tensor in expert.items()} for expert in experts]
    for part in promoted(x).split(CHUNK):
        yield torch.cat([hidden(expert, layer.layout, layer.activation, part) for expert in exact], 1)


def activation_moments(layer: MoELayer, x: Tensor, reference: Expert, expert: Expert) -> ActivationMoments:
    """Moments of the hidden neurons of two experts on the tokens x [T, d]."""
    moments = ActivationMoments.zeros(layer.d_ff)
    for ours, theirs in zip(activations(layer, [reference], x), activations(layer, [expert], x), strict=True):
        moments.add(ours, theirs)
    return moments


def pair_moments(
    source: TensorSource, layer: MoELayer, tokens: LayerTokens, reference: int, others: Sequence[int]
) -> Iterator[tuple[int, ActivationMoments]]:
    """Each of `others` with its moments over the tokens routed to it or to `reference`; one at a time in memory."""
    target = read_expert(source, layer, reference)
    for e in others:
        x = tokens.routed_to([reference, e])
        yield e, activation_moments(layer, x, target, read_expert(source, layer, e))
