"""Application of a plan to a checkpoint, group by group: a pure function of (checkpoint, plan, measurements)."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mcsmoe.alignment.matching import Match, permute
from mcsmoe.alignment.pairs import matched_by_activation, matched_by_weight
from mcsmoe.calibration.gradients import Gradients
from mcsmoe.calibration.memory import must_stream
from mcsmoe.calibration.observer import LayerTokens, Observer
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.companions import complete
from mcsmoe.checkpoint.content import Content, source_code
from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.resume import Store, resumable_directory
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.verify import probe_batch, verify_checkpoint
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written
from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.families import Expert, Family, MoELayer, TensorSource, contents, family_of
from mcsmoe.families.experts import read_expert
from mcsmoe.grouping.plan import Group, Plan
from mcsmoe.merging.rules import RULES, Members
from mcsmoe.model import Model
from mcsmoe.progress import progress
from mcsmoe.registry import Registry


@dataclass(frozen=True)
class Material:
    """Measurements of the checkpoint, and a seed. Calling `tokens` may run the model over the calibration sample."""

    statistics: RoutingStatistics
    gradients: Gradients
    tokens: Callable[[MoELayer], LayerTokens]
    seed: int = 0


Align = Callable[[TensorSource, MoELayer, int, Sequence[int], Material], dict[int, Tensor]]
"""(checkpoint, layer, reference, other members, material) → permutation [f] by member; others stay as they are."""

ALIGNMENTS: Registry[Align] = Registry("alignment", "mcsmoe.merging", looks=False)
"""The fact `looks` marks an alignment that uses calibration tokens: it calls `Material.tokens`."""


@ALIGNMENTS.register("weight")
def by_weight(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], material: Material
) -> dict[int, Tensor]:
    """Align by weight matching (paper §3.1; Git Re-Basin, arXiv 2209.04836)."""
    return _orders(matched_by_weight(source, layer, reference, others), layer, len(others))


@ALIGNMENTS.register("activation", looks=True)
def by_activation(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], material: Material
) -> dict[int, Tensor]:
    """Align by activation matching: the correlation of hidden neurons on the tokens routed to either expert."""
    found = matched_by_activation(source, layer, reference, others, material.tokens(layer))
    return _orders(found, layer, len(others))


def _orders(matches: Iterator[tuple[int, Match]], layer: MoELayer, count: int) -> dict[int, Tensor]:
    return {e: match.perm for e, match in progress(matches, f"align experts of {layer.name}", count, late=True)}


@ALIGNMENTS.register("none")
def unaligned(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], material: Material
) -> dict[int, Tensor]:
    """Leave the hidden neurons in their order."""
    return {}


Reference = Callable[[Group], int]
"""Group → the member that the others are aligned to."""

REFERENCES: Registry[Reference] = Registry("reference", "mcsmoe.merging")


@REFERENCES.register("dominant")
def dominant(group: Group) -> int:
    """Choose the dominant expert, as the paper does (§3.1)."""
    return group.dominant


@REFERENCES.register("first")
def first(group: Group) -> int:
    """Choose the member with the lowest id, as the reference implementation does."""
    return group.members[0]


def merge_group(source: TensorSource, layer: MoELayer, group: Group, plan: Plan, material: Material) -> Expert:
    """Merge one group: align its members to the plan's reference and combine them by its rule; a singleton is kept."""
    if len(group.members) == 1:
        return read_expert(source, layer, group.members[0])
    reference = REFERENCES[plan.reference](group)
    others = [e for e in group.members if e != reference]
    orders = ALIGNMENTS[plan.alignment](source, layer, reference, others, material)

    def aligned(e: int, expert: Expert) -> Expert:
        return permute(expert, layer.layout, orders[e]) if e in orders else expert

    members = Members(
        experts=[aligned(e, read_expert(source, layer, e)) for e in group.members],
        weights=torch.tensor(group.weights, dtype=torch.float64),
        dominant=group.members.index(group.dominant),
        layer=layer,
        statistics=material.statistics[layer.name],
        fisher=lambda kind: [aligned(e, material.gradients.read(kind, layer, e)) for e in group.members],
        inputs=lambda: material.tokens(layer).routed_to(group.members),
        # A different seed for each group, and the same on every machine, which `hash` would not be.
        seed=zlib.crc32(f"{material.seed}/{layer.name}/{group.dominant}".encode()),
    )
    return RULES[plan.rule](members)


def merged_pieces(
    source: TensorSource, family: Family, layer: MoELayer, plan: Plan, material: Material
) -> Iterator[Piece]:
    """Yield the index map and the merged experts of one layer; each expert is made only when it is asked for."""
    groups = plan.layers[layer.name]
    yield Piece(family.merged_map(layer), None, groups.expert_map)
    for k, group in enumerate(groups.groups):
        merged = merge_group(source, layer, group, plan, material)
        for name in layer.layout:
            yield Piece(family.merged_tensor(layer, name), k, merged.pop(name))


def write_merged(
    source: Checkpoint, plan: Plan, material: Material, directory: Path, store: Store | None = None
) -> Written:
    """Write `source` to `directory` with `plan` applied, group by group.

    Peak memory, whatever the number of layers and groups, is the greater of

    - m + 1 experts, with m members in the largest group, for rules that sum weights;
    - for weight matching, what `matched_by_weight` holds: a float32 copy of one expert, another expert, a float32
      copy of one of its tensors, and 4 f² bytes of similarities, with more than one thread twice that or more.

    Returns what was written; for shards and `store` see `write_parts`. Raises `CheckpointError` if `source` is not
    a stock checkpoint or holds NaN, and `DiskFullError` if the disk is full.
    """
    family = family_of(source.config)
    layers = family.layers(source.config)
    ours = {place.name(e) for layer in layers for e in range(layer.experts) for place in layer.places.values()}
    missing = sorted(ours - set(source.names()))
    if missing:
        raise CheckpointError(f"no tensor {missing[0]}: merging needs a stock checkpoint, as permute writes it")
    parts = []
    for layer in layers:
        specs = {family.merged_map(layer): TensorSpec(torch.int64, (layer.experts,))}
        for name, shape in layer.shapes().items():
            dtype = source.dtype(layer.places[name].name(0))
            specs[family.merged_tensor(layer, name)] = TensorSpec(dtype, (plan.experts[layer.name], *shape))
        parts.append(Part(layer.name, specs, partial(merged_pieces, source, family, layer, plan, material)))
    found = contents(source.config, source.names(), source.directory)
    others = {new: old for old, new in found.in_memory.items()} | {name: name for name in found.mtp}
    rest = {new: TensorSpec(source.dtype(old), source.shape(old)) for new, old in others.items()}
    everything = [*parts, *other_parts(rest, lambda name: source.tensor(others[name]))]
    written = write_parts(directory, everything, f"merge {plan.method}", store)
    config = family.merged_config(source.config, plan.experts)
    write_json(directory / "config.json", config)
    complete(directory, source.directory)
    plan.save(directory)
    return written


def looks(rule: str, alignment: str) -> bool:
    """Whether merging by this rule and alignment uses calibration tokens, for which the model must run."""
    return RULES.fact(rule, "looks") or ALIGNMENTS.fact(alignment, "looks")


def merge_model(
    model: Model,
    plan: Plan,
    statistics: RoutingStatistics,
    output: Path,
    *,
    observer: Observer | None = None,
    seed: int = 0,
    key: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` with `plan` applied to `output`, and verify it. Only a plan that `looks` needs an `observer`.

    An interrupted run resumes at the layer where it stopped, if the weights are large enough for shards. It resumes
    only with the same `key`: JSON values that identify the statistics, the gradients and the user's own rules.
    Raises `PlanError` and `StatisticsError` for those of another model, `ParameterError` for an observer that is
    missing, `MemoryLimitError` if the model cannot be verified within
    its `memory_limit`, and what `write_merged` and `verify_checkpoint` raise; `output` then stays as it was.
    """
    plan.check_model({layer.name: layer.experts for layer in model.layers})
    statistics.check_model(model.layers, model.fingerprint)
    if observer is None:
        if looks(plan.rule, plan.alignment):
            what = f"rule {plan.rule!r} with alignment {plan.alignment!r} needs calibration tokens: give the texts"
            raise ParameterError("texts", None, what)
        must_stream(model.memory_limit, "merge", model.config)
    key = dict(key or {}) | {
        "source": Content(model.directory),
        "sample": observer and [observer.sample.fingerprint, observer.sampling.batch_size],
        "plan": plan.to_json(),
        "seed": seed,
        "code": source_code(),
    }
    with resumable_directory(output, key) as staging:
        with observer or nullcontext():
            tokens = observer.tokens if observer else _unseen
            material = Material(statistics, Gradients(statistics.directory), tokens, seed)
            written = write_merged(model.checkpoint, plan, material, *staging)
        probe = probe_batch(model.config.vocab_size, model.family.causal)
        verify_checkpoint(staging.output, written, probe, None, model.memory_limit)


def _unseen(layer: MoELayer) -> LayerTokens:
    raise AssertionError("a plan that does not look asks for tokens")
