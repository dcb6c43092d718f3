"""Calibration statistics of a sparse layer and of a whole model, as sums: parts of the sample can be added up."""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Required, Self

import torch
from pydantic import ConfigDict, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from mcsmoe.calibration.sums import fault, selected, shapes
from mcsmoe.checkpoint.reader import all_finite
from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.writer import Piece, TensorSpec, write_safetensors
from mcsmoe.errors import StatisticsError, UnknownNameError
from mcsmoe.families import MoELayer
from mcsmoe.reading import parse_as

STATISTICS = "statistics.safetensors"
PROVENANCE = "provenance.json"
MEASURED = "measured.safetensors"
MODEL = "model"
"""Entry of the provenance: the fingerprint of the model."""
KEPT = "sums"
"""Name of the note that lists the finished layers."""


ALSO: dict[str, tuple[str, ...]] = {
    "input-gram": ("input_gram",),
    "norms": ("norms", "gated_norms"),
    "outputs": ("all_outputs", "output_gram"),
    "pair-errors": ("pair_errors",),
    "correlation": (),
    "gradients": (),
    "exact-fisher": (),
}
"""Optional entries of `collect.also` → the sums each adds. Entries without sums are written to separate files."""


@dataclass
class LayerStatistics:
    """Sums over the T real tokens of one layer with E experts and inputs of width d; all float64.

    x is an input, h = R x its router logits (paper §3), g_e the gate of expert e (0 if not selected), f_e(x) the output
    of expert e, and n_e the number of tokens that select e. Selections are those before any capacity limit, so every
    token counts and no expert's output is cut. The sums listed in `ALSO` are None unless they were asked for.
    """

    tokens: Tensor  # []: T
    coselection: Tensor  # [E, E]: tokens that select both experts; the diagonal is n_e
    gates: Tensor  # [E]: Σ g_e
    logits_gram: Tensor  # [E, E]: Σ h hᵀ
    input_sums: Tensor  # [E, d]: Σ x over tokens of e
    input_abs_sums: Tensor  # [E, d]: Σ |x| over tokens of e
    input_square_sums: Tensor  # [E, d]: Σ x² over tokens of e
    input_gram: Tensor | None = None  # [d, d]: Σ x xᵀ
    norms: Tensor | None = None  # [E]: Σ ‖f_e(x)‖ over tokens of e
    gated_norms: Tensor | None = None  # [E]: Σ g_e ‖f_e(x)‖
    all_outputs: Tensor | None = None  # [E, d]: Σ f_e(x) over all T tokens
    output_gram: Tensor | None = None  # [E, E]: Σ ⟨f_i(x), f_j(x)⟩ over all T tokens
    pair_errors: Tensor | None = None  # [E, E]: Σ ‖f_i(x) − f_ij(x)‖² over tokens of i, f_ij the averaged pair

    @classmethod
    def zeros(cls, experts: int, d_model: int, also: Collection[str] = (), device: Any = "cpu") -> Self:
        """Empty sums, including those that `also` adds. Raises `UnknownNameError` for an entry not in `ALSO`."""
        for entry in also:
            if entry not in ALSO:
                raise UnknownNameError("entry of also", entry, ALSO)

        wanted = ALWAYS.union(*(ALSO[entry] for entry in also))
        sizes = {name: shape for name, shape in shapes(experts, d_model).items() if name in wanted}
        return cls(**{name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in sizes.items()})

    @property
    def counts(self) -> Tensor:
        """n_e [E]: tokens that select each expert."""
        return self.coselection.diagonal()

    @property
    def frequency(self) -> Tensor:
        """Activation frequency ν_e = n_e / Σ n [E] (paper §3.2); zeros when no token was seen."""
        return self.counts / self.counts.sum().clamp(min=1)

    def tensors(self) -> dict[str, Tensor]:
        """The sums that were collected, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to each sum, such as a move to a device or a reduction over processes."""
        return type(self)(**{name: change(value) for name, value in self.tensors().items()})

    def __add__(self, other: Self) -> Self:
        ours, theirs = self.tensors(), other.tensors()
        if lone := ours.keys() ^ theirs.keys():
            raise ValueError(f"only one of the two statistics holds {', '.join(sorted(lone))}")
        return type(self)(**{name: value + theirs[name] for name, value in ours.items()})


ALWAYS = {f.name for f in fields(LayerStatistics)} - {name for names in ALSO.values() for name in names}
"""Sums that are collected without being asked for."""


@with_config(ConfigDict(extra="allow"))
class Provenance(TypedDict, total=False):
    """What `provenance.json` holds: token counts by layer, and the sample if `collect` drew it."""

    tokens: Required[dict[str, int]]
    fingerprint: str
    seed: int
    samples: int
    model: dict[str, str]


@dataclass(repr=False)
class RoutingStatistics:
    """Statistics of each sparse layer, in the order of the forward pass, and where they come from.

    `provenance` describes the calibration sample (fingerprint, seed and size) and the model. `measured` holds [E, E]
    matrices by layer and name that are not sums: they describe the whole sample and cannot be added over parts of it.
    `directory` is where the statistics were read from or written to, and where gradients lie, if any were collected.
    """

    layers: dict[str, LayerStatistics]
    provenance: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    directory: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        tokens = int(max((layer.tokens for layer in self.layers.values()), default=0))
        also = sorted({name for layer in self.layers.values() for name in layer.tensors()} - ALWAYS)
        more = f", also {', '.join(also)}" if also else ""
        return f"RoutingStatistics({len(self.layers)} layers, {tokens:,} tokens{more})"

    def __getitem__(self, layer: str) -> LayerStatistics:
        return self.layers[layer]

    def __add__(self, other: Self) -> Self:
        """Statistics over the tokens of both, with the provenance of the left one.

        Raises `ValueError` if the models, layers or sums differ, or if either holds measured matrices.
        """
        if self.provenance.get(MODEL) != other.provenance.get(MODEL):
            raise ValueError("statistics of different models cannot be added")
        if self.layers.keys() != other.layers.keys():
            raise ValueError("statistics of different layers cannot be added")
        if self.measured or other.measured:
            raise ValueError("measured matrices are no sums and cannot be added: measure them on the whole sample")
        return type(self)({name: self[name] + other[name] for name in self.layers}, self.provenance)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply `change` to each sum of each layer and keep the rest."""
        return replace(self, layers={name: layer.map(change) for name, layer in self.layers.items()})

    def save(self, directory: Path | str) -> None:
        """Write sums, measured matrices, and `provenance.json` (with token counts by layer) into `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with StatisticsWriter(directory) as writer:
            for name, layer in self.layers.items():
                writer.keep(name, layer)
            writer.finish(self.provenance, self.measured)

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read what `save` wrote, and check all of it. Tensors are memory-mapped: unused ones take no memory.

        Raises `StatisticsError` if a file is missing or damaged, or holds what sums over tokens cannot be.
        """
        directory = Path(directory)
        try:
            sums, measured = _read(directory / STATISTICS), _read(directory / MEASURED)
            provenance = parse_as(Provenance, (directory / PROVENANCE).read_bytes())
            tokens = provenance.pop("tokens")
            layers = {name: LayerStatistics(**sums[name]) for name in tokens}
            _check(layers, tokens, measured)
        except FileNotFoundError as error:
            raise StatisticsError(f"no routing statistics in {directory} ({error})") from None
        except (SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
            raise StatisticsError(f"routing statistics in {directory} are damaged ({error})") from None
        return cls(layers, provenance, measured, directory)

    def check_model(self, layers: Sequence[MoELayer], fingerprint: Mapping[str, str]) -> None:
        """Raise `StatisticsError` unless these are statistics of the model with these layers and this fingerprint.

        Statistics that were not made by `collect` may have no fingerprint of their own; any model's is then theirs.
        """
        found = {name: tuple(layer.input_sums.shape) for name, layer in self.layers.items()}
        expected = {layer.name: (layer.experts, layer.d_model) for layer in layers}
        for name in [*expected, *found]:
            if found.get(name) != expected.get(name):
                what = f"[experts, width] of {name} are {found.get(name)}, in the model {expected.get(name)}"
                raise StatisticsError(f"routing statistics of another checkpoint: {what}")
        for layer in layers:
            k = selected(self[layer.name].tensors())
            if k and k != layer.top_k:
                what = f"{k:g} experts a token in {layer.name}; the model selects {layer.top_k}"
                raise StatisticsError(f"routing statistics of another checkpoint: {what}")
        for part, hash_of_it in self.provenance.get(MODEL, {}).items():
            if fingerprint.get(part) != hash_of_it:
                raise StatisticsError(f"routing statistics of another model: this one has a different {part}")


class StatisticsWriter:
    """Writes `RoutingStatistics` layer by layer into an existing directory; one layer is in memory at a time.

    `store` keeps finished layers until all are there, so that a writer of a later run finds them; without a store,
    an interrupted run leaves nothing. With several processes one writes; the others pass None as directory.
    """

    def __init__(self, directory: Path | None, store: Store | None = None) -> None:
        self._directory, self._store = directory, store
        self._stack = ExitStack()
        self.tokens: dict[str, int] = {}
        """Token counts of the layers kept so far."""

    def __enter__(self) -> Self:
        if self._directory is not None and self._store is None:
            self._store = Store(Path(self._stack.enter_context(TemporaryDirectory(dir=self._directory))))
        if self._store is not None and KEPT in self._store:
            self.tokens = self._store.load(KEPT).values
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, name: str, layer: LayerStatistics) -> None:
        """Store the next layer, in the order of the forward pass."""
        if self._store is None:
            return
        self._store.keep(f"{name}.sums", layer.tensors())
        self.tokens[name] = int(layer.tokens)
        self._store.keep(KEPT, {}, self.tokens)

    def finish(self, provenance: Mapping[str, Any], measured: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Combine all layers into one file; write the measured matrices and the provenance beside it."""
        if self._directory is None or self._store is None:
            return
        store = self._store

        def pieces() -> Iterator[Piece]:
            for name in self.tokens:
                for key, value in store.load(f"{name}.sums").tensors.items():
                    yield Piece(f"{name}/{key}", None, value)

        specs = {piece.tensor: TensorSpec(piece.value.dtype, tuple(piece.value.shape)) for piece in pieces()}
        write_safetensors(self._directory / STATISTICS, specs, pieces())
        save_file(_flat(measured), self._directory / MEASURED)
        text = json.dumps({**provenance, "tokens": self.tokens}, indent=2)
        (self._directory / PROVENANCE).write_text(text + "\n")


def _flat(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    # Contiguous copies: safetensors refuses tensors that share storage.
    return {
        f"{layer}/{name}": value.cpu().clone(memory_format=torch.contiguous_format)
        for layer, values in layers.items()
        for name, value in values.items()
    }


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        layer, _, name = key.rpartition("/")
        layers.setdefault(layer, {})[name] = value
    return layers


def _check(
    layers: Mapping[str, LayerStatistics], tokens: Mapping[str, int], measured: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Raise `ValueError` for what cannot be."""
    for name, layer in layers.items():
        if not re.fullmatch(r"[\w.]+", name):  # it becomes part of the name of a file
            raise ValueError(f"{name!r} is no name of a layer")
        wrong = fault(layer.tensors())
        if not wrong and tokens[name] != layer.tokens:
            wrong = f"{tokens[name]} tokens in {PROVENANCE}, {layer.tokens:g} in {STATISTICS}"
        if wrong:
            raise ValueError(f"{name}: {wrong}")
    for name, values in measured.items():
        for key, value in values.items():
            if tuple(value.shape) != tuple(layers[name].coselection.shape) or not all_finite(value):
                raise ValueError(f"{name}: {key} has another shape than [experts, experts], or holds NaN or infinity")
