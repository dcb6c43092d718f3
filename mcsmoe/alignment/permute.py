"""Alignment of all experts of each layer to one of them, written as a checkpoint that computes the same function."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.alignment.activations import pair_moments
from mcsmoe.alignment.matching import Match, activation_match, permute_tensor, weight_match
from mcsmoe.calibration.observer import LayerTokens, Observer
from mcsmoe.checkpoint.companions import complete
from mcsmoe.checkpoint.content import Content, source_code
from mcsmoe.checkpoint.lockstep import logits_of
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.resume import Store, resumable_directory
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.streamed import load_fitting
from mcsmoe.checkpoint.verify import verify_checkpoint
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written
from mcsmoe.errors import CheckpointError
from mcsmoe.families import MoELayer, TensorSource
from mcsmoe.families.experts import expert_shares, read_expert
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import model_inputs


def weight_matches(source: TensorSource, layer: MoELayer, reference: int) -> dict[int, Match]:
    """Match every other expert of the layer to expert `reference` by weights: expert id → match."""
    target = read_expert(source, layer, reference)
    others = [e for e in range(layer.experts) if e != reference]
    shown = progress(others, f"match experts of {layer.name}", late=True)
    return {e: weight_match(target, read_expert(source, layer, e), layer.layout) for e in shown}


def activation_matches(source: TensorSource, layer: MoELayer, reference: int, tokens: LayerTokens) -> dict[int, Match]:
    """Match every other expert to expert `reference` by activations on the tokens routed to either."""
    others = [e for e in range(layer.experts) if e != reference]
    pairs = pair_moments(source, layer, tokens, reference, others)
    shown = progress(pairs, f"match experts of {layer.name}", len(others), late=True)
    return {e: activation_match(moments) for e, moments in shown}


LAYER_REFERENCES: dict[str, Callable[[MoELayer, Observer], int]] = {
    "most-used": lambda layer, observer: int(observer.counts[layer.name].argmax()),
    "first": lambda layer, observer: 0,
}
MATCHINGS: dict[str, Callable[[MoELayer, int, Observer], Mapping[int, Match]]] = {
    "weight": lambda layer, reference, observer: weight_matches(observer.model.checkpoint, layer, reference),
    "activation": lambda layer, reference, observer: activation_matches(
        observer.model.checkpoint, layer, reference, observer.tokens(layer)
    ),
}


@dataclass(frozen=True)
class LayerMatch:
    """The reference expert of a layer, and the match of every other expert by its id."""

    reference: int
    matches: Mapping[int, Match]

    @property
    def orders(self) -> dict[int, Tensor]:
        """The permutation [f] of each expert's hidden neurons."""
        return {e: match.perm for e, match in self.matches.items()}

    @property
    def summary(self) -> dict[str, float]:
        """The reference, and the mean objective before and after alignment."""
        matches, count = self.matches.values(), max(len(self.matches), 1)
        return {
            "reference": self.reference,
            "before": round(sum(match.before for match in matches) / count, 6),
            "after": round(sum(match.after for match in matches) / count, 6),
        }


class KeptMatches:
    """The matches of each layer: computed on first use, read from `store` afterwards."""

    def __init__(self, store: Store, find: Callable[[MoELayer], LayerMatch]) -> None:
        self._store, self._find = store, find

    def __call__(self, layer: MoELayer) -> LayerMatch:
        """The matches of `layer`."""
        name = f"{layer.name}.matches"
        if name not in self._store:
            found = self._find(layer)
            orders = {str(e): order for e, order in found.orders.items()}
            changes = {e: [match.before, match.after] for e, match in found.matches.items()}
            self._store.keep(name, orders, {"reference": found.reference, "changes": changes})
        orders, values = self._store.load(name)
        matches = {int(e): Match(orders[e], *change) for e, change in values["changes"].items()}
        return LayerMatch(values["reference"], matches)


Orders = Callable[[MoELayer], Mapping[int, Tensor]]
"""Layer → the permutation [f] of each expert by its id; experts that are missing stay as they are."""


def write_permuted(
    source: Checkpoint, layers: Iterable[MoELayer], orders: Orders, directory: Path, store: Store | None = None
) -> Written:
    """Write `source` to `directory` with `orders` applied; `orders` is called as each layer is written.

    Peak memory, whatever the number of layers: that of `orders`, or two copies of a tensor (in a stack: of one entry).
    Returns what was written; for shards and `store` see `write_parts`.
    """
    specs = {name: TensorSpec(source.dtype(name), source.shape(name)) for name in source.names()}
    parts = []
    for layer in layers:
        held = dict.fromkeys(share.tensor for share in expert_shares(layer, layer.experts))
        ours = {name: specs.pop(name) for name in held}
        parts.append(Part(layer.name, ours, partial(_permuted, source, layer, orders)))
    written = write_parts(directory, [*parts, *other_parts(specs, source.tensor)], "permute", store)
    (directory / "config.json").write_bytes(source.config_text.encode())
    complete(directory, source.directory)
    return written


def _permuted(source: Checkpoint, layer: MoELayer, orders: Orders) -> Iterator[Piece]:
    found = orders(layer)
    for tensor, entry, e, names in expert_shares(layer, layer.experts):
        value = source.tensor(tensor) if entry is None else source.part(tensor, entry)
        yield Piece(tensor, entry, _moved(value, layer, names, found[e]) if e in found else value)


def _moved(share: Tensor, layer: MoELayer, names: Sequence[str], order: Tensor) -> Tensor:
    """One expert's share of a tensor, which holds `names` of the layout, with its hidden neurons in `order`."""
    moved = torch.empty_like(share)
    for name in names:
        view = layer.places[name].view
        view(moved).copy_(permute_tensor(view(share), name, layer.layout, order))
    return moved


ROUNDING = 1e-4
"""Largest change of a logit, relative to the largest logit, that reordered float32 sums can cause."""


def largest_change(
    before: Path, after: Path, batch: Mapping[str, Tensor], memory_limit: int | None = None, known: Tensor | None = None
) -> float:
    """Largest absolute change in logits on `batch` between two checkpoints, with one model in memory at a time.

    It is measured in float32, and a change beyond rounding again in float64, because a near tie in a router may be
    decided differently. `known` are the logits of `after` in its own precision, which serve if that is float32.
    A large model is read block by block: see `load_fitting`.
    Raises `CheckpointError` if the change exceeds rounding in float64, too.
    """
    for dtype in (torch.float32, torch.float64):
        old = logits_of(load_fitting(before, memory_limit, dtype), batch).double()
        if known is None or known.dtype != dtype:
            known = logits_of(load_fitting(after, memory_limit, dtype), batch)
        new = known.double()
        change = float((old - new).abs().max())
        if change <= ROUNDING * float(old.abs().max()):
            return change
    raise CheckpointError(f"logits of {after} differ by {change:.3g} from {before}: wrong permutation")


@dataclass(frozen=True)
class Permuted:
    """Summary of each layer's match by layer name, and the largest change of a logit."""

    layers: Mapping[str, Mapping[str, float]]
    largest_logit_change: float


def permute_model(observer: Observer, output: Path, matching: str, reference: str) -> Permuted:
    """Align the hidden neurons of each layer's experts to one of them; write the model, whose function is unchanged.

    `matching` is a key of `MATCHINGS`; `reference`, a key of `LAYER_REFERENCES`, selects the expert that the others
    are aligned to. An interrupted run resumes at the layer where it stopped.
    Raises `CheckpointError` if logits on the first batch change by more than rounding; nothing is written then.
    """
    model = observer.model
    probe = model_inputs(observer.batches[0], model.family.causal)
    key = {
        "source": Content(model.directory),
        "sample": observer.sample.fingerprint,
        "batch_size": observer.sampling.batch_size,
        "how": [matching, reference],
        "code": source_code(),
    }

    def find(layer: MoELayer) -> LayerMatch:
        target = LAYER_REFERENCES[reference](layer, observer)
        return LayerMatch(target, MATCHINGS[matching](layer, target, observer))

    with resumable_directory(output, key) as staging:
        matches = KeptMatches(staging.store, find)
        with observer:
            written = write_permuted(model.checkpoint, model.layers, lambda layer: matches(layer).orders, *staging)
        layers = {layer.name: matches(layer).summary for layer in model.layers}
        logits = verify_checkpoint(staging.output, written, probe, None, model.memory_limit)
        change = largest_change(model.directory, staging.output, probe, model.memory_limit, logits)
    return Permuted(layers, change)
