"""The whole export: router rows from the calibration sample, then the stock checkpoint, written and verified."""

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
from mcsmoe.exporting.routers import ROWS, RouterData, RowRule, agreement
from mcsmoe.exporting.stock import Mapped, check_stock, write_stock
from mcsmoe.families import MoELayer, Routing
from mcsmoe.progress import progress

Agreement = Mapping[str, float]
"""Layer → share of tokens that the K router rows send to the same group as all E rows."""


def stock_routers(
    mapped: Mapped, rule: RowRule, model: nn.Module, batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], Agreement]:
    """Router tensors of all layers by their name in the mapped checkpoint, and their `Agreement`.

    `model` is the source model; the rows are fitted to its tokens, with one layer's in memory at a time. Corrections
    of scores, which some routers have, are taken from the dominant experts.
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
        del data  # free it before the next layer's data
    return tensors, shares


def router_data(
    mapped: Mapped, layer: MoELayer, weight: str, bias: str | None, seen: list[tuple[Tensor, Tensor]]
) -> RouterData:
    """Collect the data of one layer's router; empties `seen`, the (inputs, logits) of the real tokens of each batch."""
    inputs, logits = (torch.cat(each) for each in zip(*seen, strict=True))
    seen.clear()
    rows = mapped.checkpoint.tensor(weight)
    if bias is not None:
        rows = torch.cat([rows, mapped.checkpoint.tensor(bias)[:, None]], 1)
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    return RouterData(layer.name, rows, inputs, logits, mapped.members[layer.name], mapped.dominants[layer.name])


REPORT = "export.json"
"""Marks a directory as an export, and holds its source of router rows, experts per layer, and `Agreement`."""
CARD = "README.md"


def export_model(
    observer: Observer,
    mapped: Mapped,
    output: Path,
    router: str,
    card: Callable[[Agreement], str],
    key: Mapping[str, Any] | None = None,
) -> Agreement:
    """Write `mapped`, made from the observer's model, to `output` as a stock checkpoint with a model card.

    `router` is a key of `ROWS`. An interrupted run resumes at the layer where it stopped, if the weights are large
    enough for shards. It resumes only with the same `key`: JSON values that identify the user's own rules.
    Raises `UnknownNameError` for an unknown `router`, `CheckpointError` if no stock class can hold the model or if
    `output` exists and is not an export, and what `verify_stock` raises; `output` then stays as it was.
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
