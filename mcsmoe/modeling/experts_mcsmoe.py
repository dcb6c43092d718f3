"""K merged experts of one layer with the interface that transformers 5 gives to experts, and the mapped router.

This file travels beside the weights as remote code: it imports torch, transformers' activations by way of the stock
module, and the files beside it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .linears_mcsmoe import FactorisedLinears, StackedLinears

FEW = 64
"""Selections that Python sorts sooner than tensor operations do."""
STD = 0.02
"""Deviation of random weights, before a checkpoint is loaded."""


def make_linears(layer: dict[str, Any], name: str, d_in: int, d_out: int, factor: float) -> nn.Module:
    """One weight of the K experts of a layer as its entry of `config.moe_layers` describes it."""
    if "structure" not in layer:
        return StackedLinears(layer["experts"], d_in, d_out, factor)
    kept = layer["kept"][name]
    return FactorisedLinears(layer["experts"], d_in, d_out, layer["rank"], layer["structure"], kept, factor)


def describe(experts: Any) -> dict[str, Any]:
    """What `config.moe_layers` says of the experts of one layer."""
    linears = {name: each for name, each in experts.named_children() if isinstance(each, FactorisedLinears)}
    entry: dict[str, Any] = {"experts": experts.num_experts}
    if linears:
        first = next(iter(linears.values()))
        kept = {name: each.kept for name, each in linears.items()}
        entry |= {"rank": first.rank, "structure": first.structure, "kept": kept}
    return entry


def pairs(index: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Which of K experts run on which tokens, from the selections [T, k] → expert [n], token [n], tokens an expert.

    Pairs are sorted by expert, then by token. A token that selects an expert twice makes one pair with it.
    """
    if index.device.type == "cpu" and 0 < index.numel() <= FEW:
        found = sorted({(expert, token) for token, row in enumerate(index.tolist()) for expert in row})
        expert, token = torch.tensor(found).unbind(1)
        sizes = [0] * experts
        for each, _ in found:
            sizes[each] += 1
        return expert, token, sizes
    chosen = torch.zeros(len(index), experts, dtype=torch.bool, device=index.device).scatter(1, index, True)
    expert, token = chosen.T.nonzero(as_tuple=True)
    return expert, token, torch.bincount(expert, minlength=experts).tolist()


class MergedExperts(nn.Module):
    """K experts (up and down, and gate where the stock ones have it), each run once for all of its tokens.

    Made from the stock experts of a layer, of which it keeps how activations are gated, but no weight.
    """

    act_fn: Any
    _apply_gate: Any = None
    """How gate and up, side by side, become hidden neurons; None: act(gate) ⊙ up, which needs no copy of them."""

    def __init__(self, stock: Any, layer: dict[str, Any]) -> None:
        super().__init__()
        self.num_experts = layer["experts"]
        self.has_gate, self.has_bias = stock.has_gate, stock.has_bias
        self.is_concatenated = stock.is_concatenated
        for name, value in vars(stock).items():  # limits and factors of activations
            if isinstance(value, int | float | None) and not name.startswith("_"):
                self.__dict__.setdefault(name, value)
        self.act_fn = getattr(stock, "act_fn", None)
        d, f = stock.down_proj.shape[1:] if not stock.is_transposed else reversed(stock.down_proj.shape[1:])
        self.names = ["gate", "up", "down"] if self.has_gate else ["up", "down"]
        for name in self.names:
            d_in, d_out = (f, d) if name == "down" else (d, f)
            setattr(self, name, make_linears(layer, name, d_in, d_out, STD * d_in**0.5))
            if self.has_bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.zeros(self.num_experts, d_out)))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """T tokens [..., d], merged experts of each [T, k], their weights [T, k] → [..., d].

        A token that selects one merged expert more than once runs it once, with the sum of the weights.
        """
        tokens = hidden_states.flatten(0, -2)  # [T, d]
        weights = top_k_weights.new_zeros(len(tokens), self.num_experts).scatter_add(1, top_k_index, top_k_weights)
        expert, token, sizes = pairs(top_k_index, self.num_experts)
        x = tokens.index_select(0, token)  # its backward is many times faster than that of tokens[token]
        inner = self.gated(x, sizes, expert)
        weight = weights.flatten().index_select(0, token * self.num_experts + expert)
        y = (self.linear("down", inner, sizes, expert) * weight[:, None]).to(tokens.dtype)
        if len(tokens) == 1:
            return y.sum(0).view(hidden_states.shape)
        return torch.zeros_like(tokens).index_add(0, token, y).view(hidden_states.shape)

    def gated(self, x: Tensor, sizes: list[int], expert: Tensor) -> Tensor:
        """Hidden neurons [n, f] of tokens x [n, d] sorted by expert [n]."""
        up = self.linear("up", x, sizes, expert)
        if not self.has_gate:
            return self.act_fn(up)
        gate = self.linear("gate", x, sizes, expert)
        if self._apply_gate is None:
            return self.act_fn(gate) * up
        both = torch.cat([gate, up], -1) if self.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
        return self._apply_gate(both)

    def linear(self, name: str, x: Tensor, sizes: list[int], expert: Tensor) -> Tensor:
        """One projection of tokens [n, in] sorted by expert [n] → [n, out]."""
        y = getattr(self, name)(x, sizes)
        return y + getattr(self, f"{name}_bias")[expert] if self.has_bias else y


@cache
def merged_experts_class(stock: Any) -> Any:
    """`MergedExperts` that gate as the stock class does; no subclass of it, lest it be initialised like one."""
    usual = stock._apply_gate is None or stock._apply_gate.__name__ == "_default_apply_gate"
    return type(f"Merged{stock.__name__}", (MergedExperts,), {"_apply_gate": None if usual else stock._apply_gate})


@cache
def mapped_router_class(stock: Any) -> Any:
    """The stock router over all E experts, with selected experts given as merged ones by the index map."""

    class Mapped(stock):
        expert_map: Tensor

        def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            """Logits [T, E], weights [T, k], merged experts [T, k], and whatever else the stock router returns."""
            logits, weights, index, *rest = super().forward(*args, **kwargs)
            return logits, weights, self.expert_map[index], *rest

    Mapped.__name__ = Mapped.__qualname__ = f"Mapped{stock.__name__}"
    return Mapped


@dataclass
class StockExperts:
    """What `MergedExperts` asks of stock ones, for gated experts without biases that lack the common interface.

    `down_proj` [E, f, d]; `act_fn` is applied to the gate.
    """

    down_proj: Tensor
    act_fn: Any
    has_gate = is_concatenated = is_transposed = True
    has_bias, _apply_gate = False, None


def hold(block: Any, layer: dict[str, Any], stock: Any) -> None:
    """Make the stock sparse layer `block` hold the merged experts that `layer` describes, and its router their map."""
    weight: Tensor = stock.down_proj
    experts = merged_experts_class(stock.__class__)(stock, layer)
    block.experts = experts.to(dtype=weight.dtype, device=weight.device)
    index_map = torch.arange(len(weight), device=weight.device) % layer["experts"]
    getattr(block, layer["router"]).register_buffer("expert_map", index_map)


def install(block: Any, layer: dict[str, Any]) -> None:
    """As `hold`, where the experts have the common interface, and the router tells which are selected."""
    hold(block, layer, block.experts)
    router = getattr(block, layer["router"])
    router.__class__ = mapped_router_class(router.__class__)
