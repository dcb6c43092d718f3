"""Experts of several kinds for tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcsmoe.families import Activation, Expert, Layout, MoELayer, Role, TensorSource

PLAIN: Layout = {"wi": Role.UP, "wo": Role.DOWN}
GATED: Layout = {
    "w1": Role.GATE,
    "w3": Role.UP,
    "b1": Role.GATE_BIAS,
    "b3": Role.UP_BIAS,
    "w2": Role.DOWN,
    "b2": Role.DOWN_BIAS,
}


def activation(name: str) -> Activation:
    """act(gate) ⊙ up, or act(up) without gate, by the name that torch has for act."""
    act = getattr(torch.nn.functional, name)
    return lambda gate, up: act(up) if gate is None else act(gate) * up


RELU = activation("relu")


def random_expert(layout: Layout, f: int, d: int, generator: torch.Generator) -> Expert:
    """An expert with normal random tensors of the shapes that the layout implies."""
    shapes = {
        Role.GATE: (f, d),
        Role.UP: (f, d),
        Role.GATE_BIAS: (f,),
        Role.UP_BIAS: (f,),
        Role.DOWN: (d, f),
        Role.DOWN_BIAS: (d,),
    }
    return {name: torch.randn(shapes[role], generator=generator) for name, role in layout.items()}


def noisy(expert: Expert, scale: float, generator: torch.Generator) -> Expert:
    """The expert with normal noise added to every tensor."""

    def add(value: Tensor) -> Tensor:
        return value + scale * torch.randn(value.shape, generator=generator)

    return {name: add(value) for name, value in expert.items()}


class InMemory(TensorSource):
    """A checkpoint that holds the experts of one layer."""

    def __init__(self, experts: Sequence[Expert], layer: MoELayer) -> None:
        self._tensors = {
            layer.places[name].name(e): value for e, expert in enumerate(experts) for name, value in expert.items()
        }

    def tensor(self, name: str) -> Tensor:
        """The tensor under `name`."""
        return self._tensors[name]
