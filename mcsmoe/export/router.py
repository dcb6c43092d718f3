"""The K router rows of one layer, and what goes with them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mcsmoe.architectures.layer import MoELayer, Routing
from mcsmoe.export.agreement import agreement
from mcsmoe.export.mapped import Mapped
from mcsmoe.export.registry import RouterData, Rule
from mcsmoe.progress import progress
from mcsmoe.routing.watch import Batch, watch


def stock_routers(
    mapped: Mapped, rule: Rule, model: nn.Module, batches: Iterable[Batch]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """All layers' router tensors by their name in the mapped checkpoint, and the layers' `agreement`.

    `model` is the source's: its tokens are those that the rows are chosen by. One layer's are in memory at a time.
    Corrections of scores are those of the dominant experts.
    """
    tensors: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    axes = mapped.family.expert_axes(mapped.source.config)
    for layer in progress(mapped.layers, "router rows of layers", late=True):
        weight = mapped.others[layer.router_weight]
        bias = f"{weight.removesuffix('weight')}bias"
        data = router_data(mapped, layer, weight, bias if bias in axes else None, model, batches)
        rows = rule(data)
        shares[layer.name] = agreement(data, rows)
        dominants = torch.tensor(data.dominants)
        for name in (name for name in axes if name.startswith(f"{layer.path}.")):
            tensors[name] = mapped.checkpoint.tensor(name).index_select(axes[name], dominants)
        width = tensors[weight].shape[1]
        for name, value in ((weight, rows[:, :width]), (bias, rows[:, width:].flatten())):
            if name in axes:
                tensors[name] = value.to(tensors[name].dtype)
    return tensors, shares


def router_data(
    mapped: Mapped, layer: MoELayer, weight: str, bias: str | None, model: nn.Module, batches: Iterable[Batch]
) -> RouterData:
    """What the router of one layer is, and does on real tokens, by one pass over the batches."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        assert routing.inputs is not None
        seen.append((routing.inputs.cpu(), routing.logits.cpu()))

    watch(model, mapped.family, [layer], batches, see)
    inputs, logits = (torch.cat(each) for each in zip(*seen, strict=True))
    rows = mapped.checkpoint.tensor(weight)
    if bias is not None:
        rows = torch.cat([rows, mapped.checkpoint.tensor(bias)[:, None]], 1)
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    return RouterData(layer.name, rows, inputs, logits, mapped.members[layer.name], mapped.dominants[layer.name])
