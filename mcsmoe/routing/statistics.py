"""What calibration measured of one sparse layer, and of a model: sums only, so that shards add up."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mcsmoe.errors import CheckpointError

STATISTICS = "statistics.safetensors"
PROVENANCE = "provenance.json"


@dataclass
class LayerStatistics:
    """Sums over the T real tokens of one layer with E experts and inputs of width d; all float64.

    Paper §3 with the saliency family of later pruning work (REAP): x an input, h = R x its router logits,
    g_e the gate where e is among the selected experts (else 0), f_e(x) the output of expert e, n_e the
    tokens selecting e. Selection is taken before any capacity limit, so every token counts and no expert's
    output is cut.
    """

    tokens: Tensor  # []: T
    coselection: Tensor  # [E, E]: tokens that select both experts; the diagonal is n_e
    gates: Tensor  # [E]: Σ g_e
    norms: Tensor  # [E]: Σ ‖f_e(x)‖ over tokens of e
    gated_norms: Tensor  # [E]: Σ g_e ‖f_e(x)‖
    logits_gram: Tensor  # [E, E]: Σ h hᵀ
    input_gram: Tensor  # [d, d]: Σ x xᵀ
    input_sums: Tensor  # [E, d]: Σ x over tokens of e
    input_abs_sums: Tensor  # [E, d]: Σ |x| over tokens of e
    input_square_sums: Tensor  # [E, d]: Σ x² over tokens of e
    output_sums: Tensor  # [E, d]: Σ f_e(x) over tokens of e
    hidden_gram: Tensor | None = None  # [E, f, f]: Σ z zᵀ over tokens of e, z the hidden activations
    output_hidden: Tensor | None = None  # [E, d, f]: Σ f_e(x) zᵀ over tokens of e

    @classmethod
    def zeros(cls, experts: int, d_model: int, d_ff: int | None = None, device: Any = "cpu") -> Self:
        """No token seen yet; with `d_ff` also the activation Gram matrices."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        E, d, f = experts, d_model, d_ff
        return cls(
            tokens=zero(),
            coselection=zero(E, E),
            gates=zero(E),
            norms=zero(E),
            gated_norms=zero(E),
            logits_gram=zero(E, E),
            input_gram=zero(d, d),
            input_sums=zero(E, d),
            input_abs_sums=zero(E, d),
            input_square_sums=zero(E, d),
            output_sums=zero(E, d),
            hidden_gram=None if f is None else zero(E, f, f),
            output_hidden=None if f is None else zero(E, d, f),
        )

    @property
    def counts(self) -> Tensor:
        """n_e [E]: tokens that select each expert."""
        return self.coselection.diagonal()

    @property
    def frequency(self) -> Tensor:
        """Activation frequency ν_e = n_e / Σ n [E] (paper §3.2); zeros when no token was seen."""
        return self.counts / self.counts.sum().clamp(min=1)

    def saliency(self, b: int, alpha: int, beta: int) -> Tensor:
        """S_e = n_e^{-b} Σ g^α ‖f_e(x)‖^β [E] for b, α, β in {0, 1}; 0 for an expert that no token selects.

        (0,0,0) frequency, (0,1,0) soft count, (0,0,1) EAN, (1,0,1) MAN, (1,1,1) REAP. Raises `KeyError`
        otherwise.
        """
        sums = {
            (0, 0): self.counts,
            (1, 0): self.gates,
            (0, 1): self.norms,
            (1, 1): self.gated_norms,
        }[alpha, beta]
        return sums / {0: torch.ones_like(sums), 1: self.counts.clamp(min=1)}[b]

    def tensors(self) -> dict[str, Tensor]:
        """The sums that are there, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Each sum changed by `change`: moved to a device, or summed over processes."""
        return type(self)(**{name: change(value) for name, value in self.tensors().items()})

    def __add__(self, other: Self) -> Self:
        theirs = other.tensors()
        if theirs.keys() != self.tensors().keys():
            raise ValueError("only one of the two statistics holds activation Gram matrices")
        return type(self)(**{name: value + theirs[name] for name, value in self.tensors().items()})


@dataclass
class RoutingStatistics:
    """Statistics of each sparse layer, in the order of the forward pass, and where they come from.

    `provenance` tells the calibration sample: its fingerprint, seed and size.
    """

    layers: dict[str, LayerStatistics]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, layer: str) -> LayerStatistics:
        return self.layers[layer]

    def __add__(self, other: Self) -> Self:
        """Statistics over the tokens of both; the provenance is the left one's."""
        if self.layers.keys() != other.layers.keys():
            raise ValueError("statistics of different layers cannot be added")
        return type(self)({name: self[name] + other[name] for name in self.layers}, self.provenance)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Each sum of each layer changed by `change`."""
        return type(self)({name: layer.map(change) for name, layer in self.layers.items()}, self.provenance)

    def save(self, directory: Path) -> None:
        """Write `statistics.safetensors` and `provenance.json` (with tokens by layer) into `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        # Contiguous copies: safetensors refuses tensors that share storage.
        flat = {
            f"{layer}/{name}": value.cpu().clone(memory_format=torch.contiguous_format)
            for layer, statistics in self.layers.items()
            for name, value in statistics.tensors().items()
        }
        save_file(flat, directory / STATISTICS)
        tokens = {name: int(layer.tokens) for name, layer in self.layers.items()}
        text = json.dumps({**self.provenance, "tokens": tokens}, indent=2)
        (directory / PROVENANCE).write_text(text + "\n")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote. Raises `CheckpointError` when it is missing or damaged."""
        try:
            flat = load_file(directory / STATISTICS)
            provenance = json.loads((directory / PROVENANCE).read_text())
            layers = _by_layer(flat, list(provenance["tokens"]))
        except FileNotFoundError as error:
            raise CheckpointError(f"no routing statistics in {directory} ({error}): run collect") from None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"routing statistics in {directory} are damaged ({error}): run collect again"
            ) from None
        return cls(layers, {k: v for k, v in provenance.items() if k != "tokens"})


def _by_layer(flat: Mapping[str, Tensor], order: list[str]) -> dict[str, LayerStatistics]:
    layers: dict[str, dict[str, Tensor]] = {name: {} for name in order}
    for key, value in flat.items():
        layer, name = key.rsplit("/", 1)
        layers[layer][name] = value
    return {layer: LayerStatistics(**values) for layer, values in layers.items()}
