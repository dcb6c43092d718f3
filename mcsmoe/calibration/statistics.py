"""Calibration statistics of a sparse layer and of a whole model, as sums: parts of the sample can be added up."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.writer import Piece, TensorSpec, write_safetensors
from mcsmoe.errors import StatisticsError, UnknownNameError

STATISTICS = "statistics.safetensors"
PROVENANCE = "provenance.json"
MEASURED = "measured.safetensors"
KEPT = "sums"
"""Name of the note that lists the finished layers."""


ALSO: dict[str, tuple[str, ...]] = {
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
    input_gram: Tensor  # [d, d]: Σ x xᵀ
    input_sums: Tensor  # [E, d]: Σ x over tokens of e
    input_abs_sums: Tensor  # [E, d]: Σ |x| over tokens of e
    input_square_sums: Tensor  # [E, d]: Σ x² over tokens of e
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

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        E, d = experts, d_model
        optional = {
            "norms": (E,),
            "gated_norms": (E,),
            "all_outputs": (E, d),
            "output_gram": (E, E),
            "pair_errors": (E, E),
        }
        return cls(
            tokens=zero(),
            coselection=zero(E, E),
            gates=zero(E),
            logits_gram=zero(E, E),
            input_gram=zero(d, d),
            input_sums=zero(E, d),
            input_abs_sums=zero(E, d),
            input_square_sums=zero(E, d),
            **{name: zero(*optional[name]) for entry in also for name in ALSO[entry]},
        )

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


@dataclass(repr=False)
class RoutingStatistics:
    """Statistics of each sparse layer, in the order of the forward pass, and where they come from.

    `provenance` describes the calibration sample: fingerprint, seed and size. `measured` holds [E, E] matrices by
    layer and name that are not sums: they describe the whole sample and cannot be added over parts of it. `directory`
    is where the statistics were read from or written to, and where gradients lie, if any were collected.
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

        Raises `ValueError` if the layers or sums differ, or if either holds measured matrices.
        """
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
        """Read what `save` wrote. Tensors are memory-mapped: unused ones take no memory.

        Raises `StatisticsError` if a file is missing or damaged.
        """
        directory = Path(directory)
        try:
            sums, measured = _read(directory / STATISTICS), _read(directory / MEASURED)
            provenance = json.loads((directory / PROVENANCE).read_text())
            layers = {name: LayerStatistics(**sums[name]) for name in provenance.pop("tokens")}
        except FileNotFoundError as error:
            raise StatisticsError(f"no routing statistics in {directory} ({error})") from None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise StatisticsError(f"routing statistics in {directory} are damaged ({error})") from None
        return cls(layers, provenance, measured, directory)


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
        layer, name = key.rsplit("/", 1)
        layers.setdefault(layer, {})[name] = value
    return layers
