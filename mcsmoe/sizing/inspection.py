"""What can be told of a checkpoint from its config.json and the index of its weights, without a single weight."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from mcsmoe.calibration.sample import TextSampling
from mcsmoe.checkpoint.config import read_config, read_json
from mcsmoe.checkpoint.fp8 import only_transformers_restores
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS
from mcsmoe.checkpoint.streamed import block_names
from mcsmoe.errors import CheckpointError
from mcsmoe.families import FAMILIES, configuration, family_of, language_config, skeleton
from mcsmoe.fields import shown_size
from mcsmoe.model_types import REFUSED
from mcsmoe.report.plain import aligned, facts
from mcsmoe.report.table import percent
from mcsmoe.sizing.needs import working_disk, working_memory
from mcsmoe.sizing.sizes import Format, Sizes, why_not_stock

FILES = ("config.json", INDEX)
"""What `inspect` reads of a hub repository."""
SHARED = re.compile(r"\.shared_(experts?|mlp)\.")
"""Part of the name of a tensor of experts that all tokens pass through."""


@dataclass(frozen=True)
class Outcome:
    """What keeping `experts` in each layer gives and costs: all but `share` (of the source) in bytes.

    `disk` is needed besides the source, `whole` and `streamed` in memory (see `mcsmoe.sizing.needs`).
    """

    experts: int
    format: Format
    bytes: int
    share: float
    disk: int
    whole: int
    streamed: int


@dataclass(frozen=True)
class Inspection:
    """Facts about a checkpoint, and the `outcomes` of merging it; a merged one has none.

    - `sparse_layers`: number of experts by layer, `experts`: number of router rows.
    - `bytes`: of all weights in `dtype`; `bytes_on_disk` None if the files at hand do not tell.
    - `router_groups`: 1 unless the router selects among groups of experts first.
    - `quantised`: name of the method, if the weights on disk are.
    - `stock_from`: the fewest experts a layer that a stock checkpoint can have; None with the reason `not_stock`.
    - `sample`: size of the calibration sample that memory and disk are for.
    """

    name: str
    model_type: str
    model_class: str
    layers: int
    sparse_layers: Mapping[str, int]
    experts: int
    top_k: int
    router_groups: int
    dtype: str
    quantised: str | None
    bytes: int
    bytes_in_experts: int
    bytes_in_shared_experts: int
    bytes_on_disk: int | None
    merged: bool
    stock_from: int | None
    not_stock: str | None
    outcomes: tuple[Outcome, ...]
    sample: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.model_class} ({self.model_type})", *facts(self._facts())]
        if self.outcomes:
            sample = "{samples:,} samples of {length:,} tokens, {batch_size} at a time".format_map(self.sample)
            note = f"Disk comes on top of the source, memory ({sample}) on top of the process itself."
            lines += ["", *aligned(self._table()), "", note]
        return "\n".join(lines)

    def _facts(self) -> list[tuple[str, str]]:
        counts = sorted(set(self.sparse_layers.values()))
        left = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        sparse = len(self.sparse_layers)
        size = f"{shown_size(self.bytes)} in {self.dtype}"
        if self.quantised:
            disk = "" if self.bytes_on_disk is None else f"{shown_size(self.bytes_on_disk)} on disk, "
            size = f"{disk}quantised ({self.quantised}); {size}, to which they are restored"
        elif self.bytes_on_disk is None:
            size += ", by the configuration"
        else:
            size = f"{shown_size(self.bytes_on_disk)} in {self.dtype}"
        inside = f"{shown_size(self.bytes_in_experts)}, {percent(self.bytes_in_experts / self.bytes)} of the bytes"
        found = [
            ("layers", f"{self.layers}, " + ("all sparse" if sparse == self.layers else f"{sparse} of them sparse")),
            ("experts", f"{left} a layer, {self.top_k} selected per token"),
        ]
        if self.bytes_in_shared_experts:
            shared = f"{shown_size(self.bytes_in_shared_experts)}; every token passes through them, they stay"
            found.append(("shared experts", shared))
        if self.router_groups > 1:
            found.append(("router groups", f"{self.router_groups} of neighbouring experts"))
        found += [("weights", size), ("in experts", inside)]
        if self.merged:
            return [*found, ("merged", f"already: {left} of {self.experts} experts a layer are left")]
        stock = f"from {self.stock_from} a layer on; any engine loads it"
        found.append(("stock result", stock if self.not_stock is None else f"no: {self.not_stock}"))
        found.append(("mapped result", "any number, also by layer; transformers loads it with trust_remote_code=True"))
        return found

    def _table(self) -> list[list[str]]:
        header = ["experts kept", "format", "result", "of source", "disk", "memory, whole", "block by block"]
        rows = [
            [
                str(row.experts),
                row.format,
                shown_size(row.bytes),
                percent(row.share),
                *map(shown_size, (row.disk, row.whole, row.streamed)),
            ]
            for row in self.outcomes
        ]
        return [header, *rows]


def inspect(directory: Path, samples: int, length: int, batch_size: int, name: str | None = None) -> Inspection:
    """Inspect a checkpoint of which `directory` holds config.json, and perhaps the index or the weights.

    Memory and disk are those for a calibration sample of `samples` blocks of `length` tokens, `batch_size` at a time.
    `name` is what people call the model, by default its directory. Raises `CheckpointError` for a config.json that is
    missing or damaged, a model without experts, and one that is not supported.
    """
    name = name or str(directory)
    config = _read_config(directory, name)
    quantisation = getattr(config, "quantization_config", None)
    copied = only_transformers_restores(config.to_dict(), name)
    if config.dtype is None:  # quantised weights are restored to bfloat16; others are float32
        config.dtype = torch.bfloat16 if quantisation else torch.float32
    sizes, model = Sizes.of(config), skeleton(config)
    if not sizes.layers:
        raise _dense(name, config.model_type)
    sampling = TextSampling((), samples, length, batch_size, seed=0, causal=family_of(config).causal)
    experts = sizes.layers[0].experts
    possible = [] if sizes.merged else [k for k in range(1, experts + 1) if why_not_stock(sizes.layers, k) is None]
    limit = sizes.layers[0].limit

    def outcome(kept: int) -> Outcome:
        form: Format = "stock" if kept in possible else "mapped"
        result, memory = sizes.kept(kept, form), working_memory(config, sampling, kept, form)
        disk = working_disk(config, sampling, kept, form, streamed=memory.streamed < memory.whole)
        disk += sizes.total if copied else 0  # the restored weights
        return Outcome(kept, form, result, round(result / sizes.total, 4), disk, memory.whole, memory.streamed)

    return Inspection(
        name=name,
        model_type=config.model_type,
        model_class=type(model).__name__,
        layers=len(block_names(model, list(sizes.layers))),
        sparse_layers={layer: held.count for layer, held in sizes.by_layer.items()},
        experts=experts,
        top_k=sizes.layers[0].top_k,
        router_groups=limit.groups if limit else 1,
        dtype=str(config.dtype).removeprefix("torch."),
        quantised=_method(quantisation) if quantisation else None,
        bytes=sizes.total,
        bytes_in_experts=sizes.in_experts,
        bytes_in_shared_experts=sum(v.nbytes for key, v in model.state_dict().items() if SHARED.search(key)),
        bytes_on_disk=_bytes_on_disk(directory),
        merged=sizes.merged,
        stock_from=possible[0] if possible else None,
        not_stock=None if possible or sizes.merged else why_not_stock(sizes.layers, experts),
        outcomes=() if sizes.merged else tuple(map(outcome, _counts(experts, possible))),
        sample={"samples": samples, "length": length, "batch_size": batch_size},
    )


def _read_config(directory: Path, name: str) -> Any:
    values = read_config(directory)
    if not isinstance(values.get("model_type"), str):
        raise CheckpointError(f"{name}: config.json names no model_type; copy the file again")
    inside = language_config(values)
    model_type = inside.get("model_type")
    if not {model_type} & {*FAMILIES, *REFUSED} and not any("expert" in key for key in inside):
        raise _dense(name, model_type)
    try:
        family_of(inside)
        config = language_config(configuration(values))
        skeleton(config)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (StrictDataclassError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: config.json describes no model that can be built: {error}") from error
    return config


def _dense(name: str, model_type: object) -> CheckpointError:
    return CheckpointError(f"{name}: a dense model ({model_type}): it has no experts to merge")


def _method(quantisation: Any) -> str:
    values = quantisation if isinstance(quantisation, Mapping) else vars(quantisation)
    return str(values.get("quant_method", "of an unknown method"))


def _bytes_on_disk(directory: Path) -> int | None:
    """Bytes of all tensors by the index, or by the size of a single file; None if there is neither."""
    if (directory / INDEX).is_file():
        try:
            return int(read_json(directory / INDEX)["metadata"]["total_size"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{directory / INDEX}: no total_size; copy the file again") from None
    file = directory / WEIGHTS
    if not file.is_file():
        return None
    with file.open("rb") as stream:  # a header of that many bytes, and then nothing but tensors
        header = int.from_bytes(stream.read(8), "little")
    return file.stat().st_size - 8 - header


def _counts(experts: int, possible: list[int]) -> list[int]:
    """Numbers of experts for the table: three quarters, a half, a quarter, … one, and the fewest of a stock result."""
    halves = [experts >> n for n in range(1, experts.bit_length())]
    return sorted({experts * 3 // 4, *halves, *possible[:1]} - {0, experts}, reverse=True)
