"""From a merged checkpoint to a stock one: router rows by the calibration sample, then all of it, verified."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.watch import Batch, one_by_one
from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.resume import identity, resumable_directory, source_code, tensor_hash
from mcsmoe.checkpoint.verify import probe_batch, verify_stock
from mcsmoe.errors import CheckpointError
from mcsmoe.export.routers import ROWS, RouterData, Rule, agreement
from mcsmoe.export.stock import Mapped, check_stock, write_stock
from mcsmoe.families import MoELayer, Routing
from mcsmoe.progress import progress

Agreement = Mapping[str, float]
"""Layer → share of tokens that the K router rows send where all E rows sent them."""


def stock_routers(
    mapped: Mapped, rule: Rule, model: nn.Module, batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], Agreement]:
    """All layers' router tensors by their name in the mapped checkpoint, and their `Agreement`.

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


REPORT = "export.json"
"""What an export is known by: the source of its router rows, its experts a layer, and their `Agreement`."""
CARD = "README.md"


def export_model(
    observer: Observer,
    mapped: Mapped,
    output: Path,
    router: str,
    card: Callable[[Agreement], str],
    key: Mapping[str, Any] | None = None,
) -> Agreement:
    """Write `mapped`, which was made of the observer's model, to `output` as a stock checkpoint with its model card.

    `router` names the source of router rows in `ROWS`. Interrupted, it goes on with the layer where it stopped, if
    weights are large enough for shards; `key` are JSON values that tell other rules of the user's own from these.
    Raises `UnknownNameError` for `router`, and `CheckpointError` where no stock class can hold the model, where
    `output` is anything but an earlier export, and as `verify_stock` does; `output` is then as it was.
    """
    rule, model = ROWS[router], observer.model
    if output.exists() and not (output / REPORT).is_file():
        raise CheckpointError(f"{output}: exists and is no earlier export; give another directory")
    check_stock(mapped)
    with observer:
        routers, shares = stock_routers(mapped, rule, observer.module, observer.batches)
    key = dict(key or {}) | {
        "source": identity(model.directory),
        "checkpoint": identity(mapped.checkpoint.directory),
        "routers": tensor_hash(routers),
        "code": source_code(),
    }
    with resumable_directory(output, key) as staging:
        written = write_stock(mapped, routers, *staging)
        probe = probe_batch(model.config.vocab_size, model.family.causal)
        verify_stock(staging.output, written, probe, model.memory_limit)
        write_json(staging.output / REPORT, {"router": router, "experts": mapped.kept, "agreement": shares})
        (staging.output / CARD).write_text(card(shares))
    return shares
