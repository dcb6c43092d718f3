"""The K router rows of one layer, and what goes with them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcsmoe.architectures.layer import MoELayer, Routing
from mcsmoe.export.agreement import agreement
from mcsmoe.export.mapped import Mapped
from mcsmoe.export.registry import RouterData, Rule
from mcsmoe.progress import progress
from mcsmoe.routing.watch import Batch, one_by_one


def stock_routers(
    mapped: Mapped, rule: Rule, model: nn.Module, batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All layers' router tensors by their name in the mapped checkpoint, and the layers' `agreement`.

    `model` is the source's: its tokens are those that the rows are chosen by. One layer's are in memory at a time.
    Corrections of scores are those of the dominant experts.
    """
    tensors: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    axes = mapped.family.expert_axes(mapped.source.config)
    seen: list[tuple[Tensor, Tensor]] = []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        assert routing.inputs is not None
        seen.append((routing.inputs.cpu(), routing.logits.cpu()))

    coming = one_by_one(model, mapped.family, mapped.layers, batches, see)
    for layer in progress(coming, "router rows of layers", len(mapped.layers), late=True):
        weight = mapped.others[layer.router_weight]
        bias = f"{weight.removesuffix('weight')}bias"
        data = router_data(mapped, layer, weight, bias if bias in axes else None, seen)
        rows = rule(data)
        shares[layer.name] = agreement(data, rows)
        dominants = torch.tensor(data.dominants)
        for name in (name for name in axes if name.startswith(f"{layer.path}.")):
            tensors[name] = mapped.checkpoint.tensor(name).index_select(axes[name], dominants)
        width = tensors[weight].shape[1]
        for name, value in ((weight, rows[:, :width]), (bias, rows[:, width:].flatten())):
            if name in axes:
                tensors[name] = value.to(tensors[name].dtype)
        del data  # before the next layer's comes
    return tensors, shares


def router_data(
    mapped: Mapped, layer: MoELayer, weight: str, bias: str | None, seen: list[tuple[Tensor, Tensor]]
) -> RouterData:
    """What the router of one layer is, and did on real tokens: inputs and logits of each batch, taken from `seen`."""
    inputs, logits = (torch.cat(each) for each in zip(*seen, strict=True))
    seen.clear()
    rows = mapped.checkpoint.tensor(weight)
    if bias is not None:
        rows = torch.cat([rows, mapped.checkpoint.tensor(bias)[:, None]], 1)
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    return RouterData(layer.name, rows, inputs, logits, mapped.members[layer.name], mapped.dominants[layer.name])
