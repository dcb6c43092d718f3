"""Groups of experts as merging rules see them, with tokens, statistics and Fisher information to match."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mcsmoe.alignment.matching import permute
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.families import Expert, Layout, MoELayer, Place, Role
from mcsmoe.merging.rules import Members
from tests.alignment.experts import activation, random_expert

D, F = 6, 10


def make_layer(layout: Layout, d: int = D, f: int = F, experts: int = 8, top_k: int = 1, act: str = "relu") -> MoELayer:
    """A layer that no model has."""
    places = {name: Place(f"encoder.block.1.experts.{{expert}}.{name}") for name in layout}
    return MoELayer(
        name="encoder.1",
        path="encoder.block.1",
        experts=experts,
        top_k=top_k,
        d_model=d,
        d_ff=f,
        layout=layout,
        activation=activation(act),
        router_path="encoder.block.1.router",
        router_weight="encoder.block.1.router.weight",
        stack="encoder",
        index=1,
        places=places,
        in_memory=places,
    )


def tokens(count: int, d: int = D, seed: int = 5) -> Tensor:
    """Inputs [T, d] whose mean is not zero."""
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed)) + 0.3


def statistics(layer: MoELayer, x: Tensor) -> LayerStatistics:
    """The sums that rules read, of inputs x [T, d] that select `top_k` experts each."""
    sums, exact = LayerStatistics.zeros(layer.experts, layer.d_model, ["input-gram"]), x.double()
    scores = torch.randn(len(x), layer.experts, generator=torch.Generator().manual_seed(6))
    chosen = torch.zeros_like(scores).scatter_(1, scores.topk(layer.top_k).indices, 1).double()
    sums.tokens += len(x)
    sums.coselection += chosen.T @ chosen
    sums.input_gram = exact.T @ exact
    sums.input_sums += chosen.T @ exact
    return sums


def group(
    experts: Sequence[Expert], layer: MoELayer, x: Tensor | None = None, weights: Sequence[float] = ()
) -> Members:
    """A group whose calibration tokens are x; Fisher information is random, another for each kind."""
    x = tokens(200, layer.d_model) if x is None else x

    def fisher(kind: str) -> list[Expert]:
        generator = torch.Generator().manual_seed(len(kind))
        return [{k: torch.rand(v.shape, generator=generator) for k, v in expert.items()} for expert in experts]

    return Members(
        experts=experts,
        weights=torch.tensor(weights or [1 / len(experts)] * len(experts), dtype=torch.float64),
        dominant=0,
        layer=layer,
        statistics=statistics(layer, x),
        fisher=fisher,
        inputs=lambda: x.to(next(iter(experts[0].values())).dtype),
        seed=0,
    )


def unused(members: Members) -> Members:
    """The same group where no token ever reached it."""
    zeros = [{k: torch.zeros_like(v) for k, v in expert.items()} for expert in members.experts]
    return replace(
        members,
        weights=torch.zeros_like(members.weights),
        statistics=LayerStatistics.zeros(members.layer.experts, members.layer.d_model, ["input-gram"]),
        fisher=lambda kind: zeros,
        inputs=lambda: members.inputs()[:0],
    )


def random_experts(layout: Layout, count: int, dtype: torch.dtype = torch.float32) -> list[Expert]:
    """Experts that have nothing in common."""
    generator = torch.Generator().manual_seed(0)
    return [{k: v.to(dtype) for k, v in random_expert(layout, F, D, generator).items()} for _ in range(count)]


def odd_expert(layout: Layout) -> Expert:
    """An expert with what makes ties: two equal neurons, one of zeros, and one that no positive input activates."""
    expert = random_expert(layout, F, D, torch.Generator().manual_seed(1))
    for name, role in layout.items():
        if role.hidden_axis is not None:
            neurons = expert[name].movedim(role.hidden_axis, 0)
            neurons[1] = neurons[0]
            neurons[2] = 0
            if role is not Role.DOWN:
                neurons[3] = -neurons[3].abs()
    return expert


def copies(expert: Expert, layout: Layout, count: int) -> list[Expert]:
    """The expert, and the same with its neurons in other orders."""
    generator = torch.Generator().manual_seed(2)
    orders = [torch.arange(F), *(torch.randperm(F, generator=generator) for _ in range(count - 1))]
    return [permute(expert, layout, order) for order in orders]
