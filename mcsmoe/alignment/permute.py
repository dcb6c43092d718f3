"""Alignment of all experts of each layer to one of them, written as a checkpoint that computes the same function."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.alignment.matching import Match, permute_tensor
from mcsmoe.alignment.pairs import matched_by_activation, matched_by_weight
from mcsmoe.calibration.observer import LayerTokens, Observer, Processes
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
from mcsmoe.families.experts import expert_shares
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import model_inputs


def weight_matches(source: TensorSource, layer: MoELayer, reference: int) -> dict[int, Match]:
    """Match every other expert of the layer to expert `reference` by weights: expert id → match."""
    others = [e for e in range(layer.experts) if e != reference]
    return _shown(matched_by_weight(source, layer, reference, others), layer)


def activation_matches(source: TensorSource, layer: MoELayer, reference: int, tokens: LayerTokens) -> dict[int, Match]:
    """Match every other expert to expert `reference` by activations on the tokens routed to either."""
    others = [e for e in range(layer.experts) if e != reference]
    return _shown(matched_by_activation(source, layer, reference, others, tokens), layer)


def _shown(matches: Iterator[tuple[int, Match]], layer: MoELayer) -> dict[int, Match]:
    return dict(progress(matches, f"match experts of {layer.name}", layer.experts - 1, late=True))


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
        if layer not in self:
            self.keep(layer, self._find(layer))
        orders, values = self._store.load(self._name(layer))
        matches = {int(e): Match(orders[e], *change) for e, change in values["changes"].items()}
        return LayerMatch(values["reference"], matches)

    def __contains__(self, layer: MoELayer) -> bool:
        return self._name(layer) in self._store

    def keep(self, layer: MoELayer, found: LayerMatch) -> None:
        """Write the matches of `layer` to the store."""
        orders = {str(e): order for e, order in found.orders.items()}
        changes = {e: [match.before, match.after] for e, match in found.matches.items()}
        self._store.keep(self._name(layer), orders, {"reference": found.reference, "changes": changes})

    @staticmethod
    def _name(layer: MoELayer) -> str:
        return f"{layer.name}.matches"


def match_together(
    layers: Sequence[MoELayer],
    find: Callable[[MoELayer], LayerMatch],
    kept: KeptMatches | None,
    processes: Processes,
) -> None:
    """Find the matches of all layers that are not kept, by turns of one layer for each process.

    Every process must call this, the first one with its `kept` matches, which gets those of each turn. The others
    know of theirs by sums, to which a process without anything to tell adds zeros.
    """

    def total(value: Tensor) -> Tensor:
        return processes.reduce(value.to(processes.device or "cpu")).cpu()

    known = total(torch.tensor([kept is not None and layer in kept for layer in layers]).long())
    left = [layer for layer, found in zip(layers, known.tolist(), strict=True) if not found]
    for start in range(0, len(left), processes.count):
        turn = left[start : start + processes.count]
        ours = find(turn[processes.index]) if processes.index < len(turn) else None
        for index, layer in enumerate(turn):
            orders = torch.zeros(layer.experts, layer.d_ff, dtype=torch.int64)
            changes = torch.zeros(layer.experts, 2, dtype=torch.float64)
            reference = torch.zeros((), dtype=torch.int64)
            if ours and index == processes.index:
                reference += ours.reference
                for e, match in ours.matches.items():
                    orders[e], changes[e] = match.perm, torch.tensor([match.before, match.after], dtype=torch.float64)
            orders, changes, reference = total(orders), total(changes), total(reference)
            if kept:
                others = [e for e in range(layer.experts) if e != int(reference)]
                matches = {e: Match(orders[e], *changes[e].tolist()) for e in others}
                kept.keep(layer, LayerMatch(int(reference), matches))


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


ALONE = Processes()


def permute_model(
    observer: Observer, output: Path, matching: str, reference: str, processes: Processes = ALONE
) -> Permuted | None:
    """Align the hidden neurons of each layer's experts to one of them; write the model, whose function is unchanged.

    `matching` is a key of `MATCHINGS`; `reference`, a key of `LAYER_REFERENCES`, selects the expert that the others
    are aligned to. Every one of `processes` must call this; they share out the layers, and the first one writes. The
    observer of each has the whole sample, so that their number changes nothing. An interrupted run resumes at the
    layer where it stopped.
    Returns None in processes other than the first. Raises `CheckpointError` if logits on the first batch change by
    more than rounding; nothing is written then.
    """
    model = observer.model

    def find(layer: MoELayer) -> LayerMatch:
        target = LAYER_REFERENCES[reference](layer, observer)
        return LayerMatch(target, MATCHINGS[matching](layer, target, observer))

    if processes.index > 0:
        with observer:
            match_together(model.layers, find, None, processes)
        return None
    probe = model_inputs(observer.batches[0], model.family.causal)
    key = {
        "source": Content(model.directory),
        "sample": observer.sample.fingerprint,
        "batch_size": observer.sampling.batch_size,
        "how": [matching, reference],
        "code": source_code(),
    }
    with resumable_directory(output, key) as staging:
        matches = KeptMatches(staging.store, find)
        with observer:
            if processes.count > 1:
                match_together(model.layers, find, matches, processes)
            written = write_permuted(model.checkpoint, model.layers, lambda layer: matches(layer).orders, *staging)
        layers = {layer.name: matches(layer).summary for layer in model.layers}
        logits = verify_checkpoint(staging.output, written, probe, None, model.memory_limit)
        change = largest_change(model.directory, staging.output, probe, model.memory_limit, logits)
    return Permuted(layers, change)
