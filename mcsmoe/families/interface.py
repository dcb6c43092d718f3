"""Experts that have the common interface of transformers 5, read from their module in memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.families.layer import Activation, Layout, Place, Role

GATED = {"gate": Role.GATE, "up": Role.UP, "down": Role.DOWN}
PLAIN = {"up": Role.UP, "down": Role.DOWN}
BIASES = {"gate": Role.GATE_BIAS, "up": Role.UP_BIAS, "down": Role.DOWN_BIAS}


@dataclass(frozen=True)
class Experts:
    """The experts of one layer: how many, their sizes, and where their module has each tensor of `layout`.

    `places` name tensors as the module does.
    """

    count: int
    d_model: int
    d_ff: int
    layout: Layout
    places: Mapping[str, Place]
    activation: Activation


def common(module: nn.Module) -> Experts | None:
    """What a module says of itself by the flags of transformers' decorator; None where it has none of them."""
    flags = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts", "down_proj")
    return _experts(module) if all(hasattr(module, flag) for flag in flags) else None


def _experts(module: Any) -> Experts:
    d_model, d_ff = module.down_proj.shape[1:]
    if module.is_transposed:
        d_model, d_ff = d_ff, d_model
    weights = GATED if module.has_gate else PLAIN
    biases = {f"{name}_bias": BIASES[name] for name in weights} if module.has_bias else {}
    layout = weights | biases
    places = {name: _place(module, name, d_ff) for name in layout}
    return Experts(module.num_experts, d_model, d_ff, layout, places, _activation(module))


def _place(module: Any, name: str, d_ff: int) -> Place:
    """Gate and up lie in one stack, one after the other or row by row in turn."""
    kind, bias = name.removesuffix("_bias"), name.endswith("_bias")
    stack = f"{kind}_proj"
    rows = None
    if module.has_gate and kind != "down":
        stack = "gate_up_proj"
        rows = halves(d_ff)[kind] if module.is_concatenated else slice(("gate", "up").index(kind), None, 2)
    return Place(f"{stack}{'_bias' if bias else ''}", rows, module.is_transposed and not bias)


def halves(d_ff: int) -> dict[str, slice]:
    """Rows of gate and up where they lie one after the other."""
    return {"gate": slice(0, d_ff), "up": slice(d_ff, 2 * d_ff)}


def _activation(module: Any) -> Activation:
    def gated(gate: Tensor | None, up: Tensor) -> Tensor:
        if gate is None:
            plain: Tensor = module.act_fn(up)
            return plain
        both = torch.cat([gate, up], -1) if module.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        inner: Tensor = module._apply_gate(both)
        return inner

    return gated


def gated_by(act: Any) -> Activation:
    """act(gate) ⊙ up."""

    def gated(gate: Tensor | None, up: Tensor) -> Tensor:
        inner: Tensor = act(gate) * up
        return inner

    return gated
