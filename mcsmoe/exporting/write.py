"""The whole export: router rows from the calibration sample, then the stock checkpoint, written and verified."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.calibration.memory import must_stream
from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.watch import Batch, one_by_one
from mcsmoe.checkpoint.config import read_json
from mcsmoe.checkpoint.content import Content, source_code, tensor_hash
from mcsmoe.checkpoint.output import check_output, write_json
from mcsmoe.checkpoint.resume import resumable_directory
from mcsmoe.checkpoint.verify import probe_batch, verify_stock
from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.exporting.routers import CHUNK, ROWS, Choice, RouterData, RowRule, agreement
from mcsmoe.exporting.stock import Mapped, check_stock, stock_config, write_stock
from mcsmoe.families import MoELayer, Routing, skeleton
from mcsmoe.model import Model
from mcsmoe.progress import progress

Agreement = Mapping[str, float]
"""Layer → share of the gates that the stock router gives to the same merged experts as all E rows do."""


def stock_routers(
    mapped: Mapped, rule: RowRule, model: nn.Module, batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], Agreement]:
    """Router tensors of all layers by their name in the mapped checkpoint, and their `Agreement`.

    `model` is the source model; the rows are fitted to its tokens, with one layer's in memory at a time. Corrections
    of scores, which some routers have, are taken from the dominant experts. The agreement is that of the router that
    is written, as its stock class runs it: with its corrections and its limit to groups of experts.
    """
    tensors: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    seen: list[Seen] = []
    stock = skeleton(json.loads(stock_config(mapped)))

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        assert routing.inputs is not None
        seen.append(tuple(value.cpu() for value in (routing.inputs, routing.logits, routing.index, routing.gates)))

    coming = one_by_one(model, mapped.family, mapped.layers, batches, see)
    for layer in progress(coming, "router rows of layers", len(mapped.layers), late=True):
        data = router_data(mapped, layer, seen)
        rows = rule(data)
        ours = router_tensors(mapped, layer, rows)
        shares[layer.name] = agreement(data, stock_choice(mapped, layer, stock, ours, data.inputs))
        tensors |= ours
        del data  # free it before the next layer's data
    return tensors, shares


def unseen_routers(mapped: Mapped, rule: RowRule) -> dict[str, Tensor]:
    """Router tensors as in `stock_routers`, by a rule that needs no tokens."""
    tensors: dict[str, Tensor] = {}
    for layer in mapped.layers:
        tensors |= router_tensors(mapped, layer, rule(router_data(mapped, layer, [])))
    return tensors


Seen = tuple[Tensor, ...]
"""What a router did with the T real tokens of a batch: inputs [T, d], logits [T, E], experts and gates [T, k]."""


def router_data(mapped: Mapped, layer: MoELayer, seen: list[Seen]) -> RouterData:
    """Collect the data of one layer's router; empties `seen`."""
    weight, bias = _names(mapped, layer)
    rows = mapped.checkpoint.tensor(weight)
    nothing = (
        rows.new_empty(0, rows.shape[1]),
        rows.new_empty(0, len(rows)),
        rows.new_empty(0, 1),
        rows.new_empty(0, 1),
    )
    inputs, logits, *chosen = (torch.cat(each) for each in zip(*(seen or [nothing]), strict=True))
    seen.clear()
    if bias is not None:
        rows = torch.cat([rows, mapped.checkpoint.tensor(bias)[:, None]], 1)
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    groups = mapped.members[layer.name], mapped.dominants[layer.name]
    return RouterData(layer.name, rows, inputs, logits, (chosen[0], chosen[1]), *groups)


@torch.no_grad()
def stock_choice(
    mapped: Mapped, layer: MoELayer, stock: nn.Module, tensors: Mapping[str, Tensor], inputs: Tensor
) -> Choice:
    """What the router of a layer of the stock model selects for `inputs` [T, d, perhaps 1 for the bias].

    `stock` is the skeleton of that model, `tensors` are those of the layer that count experts: see `router_tensors`.
    """
    block = copy.deepcopy(stock.get_submodule(layer.path)).eval()
    router = block.get_submodule(layer.router_path.removeprefix(f"{layer.path}."))
    inside = {name: f"{layer.router_path}.{name}" for name in router.state_dict()}
    # Copies, because Switch casts its router in place.
    values = {
        name: tensors[whole].clone() if whole in tensors else mapped.checkpoint.tensor(whole)
        for name, whole in inside.items()
    }
    # A correction that is not the router's own is the block's, which hands it to the router.
    corrections = [value for name, value in tensors.items() if name not in inside.values()]
    width = tensors[mapped.others[layer.router_weight]].shape[1]
    parts = []
    for x in inputs[:, :width].split(CHUNK):
        tokens = x if mapped.family.flat_router else x[None]
        routing = mapped.family.routing(block, torch.func.functional_call(router, values, (tokens, *corrections)))
        parts.append((routing.index, routing.gates))
    index, gates = (torch.cat(each) for each in zip(*parts, strict=True))
    return index, gates


def router_tensors(mapped: Mapped, layer: MoELayer, rows: Tensor) -> dict[str, Tensor]:
    """Tensors of one layer that count experts, by their name in the mapped checkpoint, with the router `rows` [K, p].

    Those that are no rows, such as corrections of scores, are taken from the dominant experts.
    """
    axes, (weight, bias) = mapped.expert_axes, _names(mapped, layer)
    dominants = torch.tensor(mapped.dominants[layer.name])
    tensors = {
        name: mapped.checkpoint.tensor(name).index_select(axis, dominants)
        for name, axis in axes.items()
        if name.startswith(f"{layer.path}.")
    }
    width = tensors[weight].shape[1]
    tensors[weight] = rows[:, :width].to(tensors[weight].dtype)
    if bias is not None:
        tensors[bias] = rows[:, width:].flatten().to(tensors[bias].dtype)
    return tensors


def _names(mapped: Mapped, layer: MoELayer) -> tuple[str, str | None]:
    """Names in the mapped checkpoint of the router's weight, and of its bias, if it has one."""
    weight = mapped.others[layer.router_weight]
    bias = f"{weight.removesuffix('weight')}bias"
    return weight, bias if bias in mapped.expert_axes else None


REPORT = "export.json"
"""Marks a directory as an export, and holds its source of router rows, experts per layer, and `Agreement`."""
CARD = "README.md"


def read_agreement(directory: Path) -> Agreement | None:
    """The agreement that `export_model` has written into `directory`."""
    found: Agreement | None = read_json(directory / REPORT)["agreement"]
    return found


def export_model(
    model: Model,
    mapped: Mapped,
    output: Path,
    router: str,
    card: Callable[[Agreement | None], str] | None = None,
    *,
    observer: Observer | None = None,
    key: Mapping[str, Any] | None = None,
) -> Agreement | None:
    """Write `mapped`, made from `model`, to `output` as a stock checkpoint, with the model card that `card` gives.

    `router` is a key of `ROWS`. Without an `observer` there is no `Agreement`. An interrupted run resumes at the
    layer where it stopped, if the weights are large enough for shards. It resumes only with the same `key`: JSON
    values that identify the user's own rules.
    Raises `UnknownNameError` for an unknown `router`, `ParameterError` for one that needs an observer,
    `CheckpointError` if no stock class can hold the model or if `output` exists and is not an export,
    `MemoryLimitError` if the model cannot be verified within its `memory_limit`, and what `verify_stock` raises;
    `output` then stays as it was.
    """
    rule = ROWS[router]
    check_output(output, directory=True)
    if output.exists() and not (output / REPORT).is_file():
        raise CheckpointError(f"{output}: exists and is no earlier export; give another directory")
    check_stock(mapped)
    shares: Agreement | None = None
    if observer is not None:
        with observer:
            routers, shares = stock_routers(mapped, rule, observer.module, observer.batches)
    elif ROWS.fact(router, "looks"):
        raise ParameterError("texts", None, f"router rows by {router!r} are fitted to calibration tokens: give texts")
    else:
        must_stream(model.memory_limit, "export", model.config)
        routers = unseen_routers(mapped, rule)
    key = dict(key or {}) | {
        "source": Content(model.directory),
        "checkpoint": Content(mapped.checkpoint.directory),
        "routers": tensor_hash(routers),
        "code": source_code(),
    }
    with resumable_directory(output, key) as staging:
        written = write_stock(mapped, routers, *staging)
        probe = probe_batch(model.config.vocab_size, model.family.causal)
        verify_stock(staging.output, written, probe, model.memory_limit)
        write_json(staging.output / REPORT, {"router": router, "experts": mapped.kept, "agreement": shares})
        if card is not None:
            (staging.output / CARD).write_text(card(shares))
    return shares
