"""Bytes of a model, of its experts, and of what merging would make of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from torch import Tensor

from mcsmoe.errors import ConflictError, ParameterError
from mcsmoe.exporting.stock import cannot_route
from mcsmoe.families import MoELayer, family_of, merged_layers, skeleton
from mcsmoe.fields import size_in_bytes

Format = Literal["stock", "mapped"]
"""Form of the result. "mapped": the router keeps its E rows, and an index map leads from each to a merged expert, of
which each layer may have its own number. "stock": the router has K rows, the same K in all layers; any engine loads it.
"""

MAP_BYTES = 8
"""Bytes of one entry of an index map, int64."""


@dataclass(frozen=True)
class LayerBytes:
    """A sparse layer with `count` experts: bytes of one of them, and of the `rows` that one has outside the experts.

    `rows` counts whatever the stock checkpoint has one of for each expert: router rows, biases, score corrections.
    """

    count: int
    expert: int
    rows: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weights of a model, in the dtype of its configuration; tied tensors count once, as on disk.

    Mixtral-8x7B in bfloat16: `total` 93.4 GB, `in_experts` 90.2 GB, `by_layer["decoder.0"].expert` 352 MB.
    """

    total: int
    in_experts: int
    layers: Sequence[MoELayer]
    by_layer: Mapping[str, LayerBytes]
    merged: bool

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """The sizes of a configuration (object or config.json dict, stock or merged).

        Raises `CheckpointError` for an unsupported model type.
        """
        family, state = family_of(config), skeleton(config).state_dict(keep_vars=True)
        tensors = dict({id(value): (name, value) for name, value in state.items()}.values())  # some are tied
        layers, merged = family.layers(config), merged_layers(config)
        counts = {layer.name: merged[layer.name]["experts"] if merged else layer.experts for layer in layers}
        inside = {layer.name: _bytes(tensors, layer.experts_path) for layer in layers}
        axes = family.expert_axes(config) if layers and not merged else {}
        counted = {name: tensors[name] for name in axes if name in tensors}
        by_layer = {
            layer.name: LayerBytes(
                counts[layer.name],
                inside[layer.name] // counts[layer.name],
                _bytes(counted, layer.path) // layer.experts,
            )
            for layer in layers
        }
        total = sum(value.nbytes for value in tensors.values())
        return cls(total, sum(inside.values()), layers, by_layer, merged is not None)

    @property
    def fewest(self) -> int:
        """Number of experts in the smallest layer."""
        return min(layer.count for layer in self.by_layer.values())

    def kept(self, experts: int | Mapping[str, int], form: Format) -> int:
        """Bytes of all tensors when each layer keeps `experts`: a number, or one by layer name; others keep all.

        Raises `ConflictError` for a model that is merged already, and `ParameterError` for a number that is not
        possible, or differs between the layers of a stock checkpoint.
        """
        if self.merged:
            raise ConflictError("the model is merged already: take the one that it was made of")
        counts = self._counts(experts)
        if form == "stock" and len(set(counts.values())) > 1:
            raise ParameterError("experts", counts, "a stock checkpoint has one number for all layers")
        result = self.total
        for name, layer in self.by_layer.items():
            gone = layer.count - counts[name]
            result -= gone * layer.expert
            result += MAP_BYTES * layer.count if form == "mapped" else -gone * layer.rows
        return result

    def largest(self, size: str | float, form: Format) -> int:
        """The most experts K, the same in each layer, with which the result has at most `size` bytes.

        `size` is a share of the model ("50%", 0.5), or bytes ("24GB", 24_000_000_000).
        Raises `ParameterError` for a size that cannot be read or reached, and for a `form` that cannot hold the model.
        """
        limit = target_bytes(size, self.total)
        possible = [k for k in range(1, self.fewest + 1) if form == "mapped" or not why_not_stock(self.layers, k)]
        if not possible:
            raise ParameterError("format", form, str(why_not_stock(self.layers, self.fewest)))
        fitting = [k for k in possible if self.kept(k, form) <= limit]
        if not fitting:
            least, left = possible[0], self.kept(possible[0], form)
            share = f"{left:,} bytes ({100 * left / self.total:.1f} %)"
            raise ParameterError("size", size, f"{least} experts a layer, the fewest of a {form} model, leave {share}")
        return fitting[-1]

    def _counts(self, experts: int | Mapping[str, int]) -> dict[str, int]:
        given = dict.fromkeys(self.by_layer, experts) if isinstance(experts, int) else dict(experts)
        for name, kept in given.items():
            if name not in self.by_layer:
                raise ParameterError("experts", name, f"sparse layers are {', '.join(self.by_layer)}")
            if not 1 <= kept <= self.by_layer[name].count:
                raise ParameterError("experts", kept, f"{name} has {self.by_layer[name].count} and keeps at least one")
        return {name: given.get(name, layer.count) for name, layer in self.by_layer.items()}


def _bytes(tensors: Mapping[str, Tensor], path: str) -> int:
    return sum(value.nbytes for name, value in tensors.items() if name.startswith(f"{path}."))


def target_bytes(size: str | float, whole: int) -> int:
    """Bytes of a size: "50%" and 0.5 are a share of `whole`, rounded down; "24GB" and 24_000_000_000 are bytes.

    Raises `ParameterError` for anything else, and for a share that is not between 0 and 1.
    """
    try:
        if isinstance(size, int) or not str(size).strip().endswith("%"):
            share = Fraction(str(size)) if isinstance(size, float) else None
        else:
            share = Fraction(str(size).strip()[:-1]) / 100
        found: int = size_in_bytes(size) if share is None else math.floor(share * whole)
        if found > 0 and (share is None or share <= 1):
            return found
    except ValueError:
        pass
    raise ParameterError("size", size, "a share of the model such as 50%, or bytes such as 24GB")


def why_not_stock(layers: Sequence[MoELayer], kept: int) -> str | None:
    """Why a stock checkpoint cannot have `kept` experts in each of `layers`; None if it can."""
    for layer in layers:
        if layer.limit is not None and layer.limit.groups > 1:
            return (
                f"the router of {layer.name} chooses among {layer.limit.groups} groups (n_group) of neighbouring "
                "experts; a stock router of merged experts would choose among other groups: take format mapped"
            )
        reason = cannot_route(layer, kept)
        if reason:
            return f"{layer.name} keeps {kept} experts, but {reason}"
    return None
