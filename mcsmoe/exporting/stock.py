"""Merged checkpoints as stock ones: how one was made, whether a stock class can hold it, and writing it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from mcsmoe.checkpoint.companions import complete
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.shards import Part, other_parts, write_parts
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, piece_shape
from mcsmoe.errors import CheckpointError, PlanError
from mcsmoe.exporting.config import with_expert_count
from mcsmoe.families import Family, MoELayer, contents, excluded_layers, family_of, merged_layers
from mcsmoe.families.experts import expert_shares
from mcsmoe.grouping.group import GROUPERS
from mcsmoe.grouping.plan import LayerPlan, Plan
from mcsmoe.methods.recipe import Recipe
from mcsmoe.params import Merge

ONE_NUMBER = "a stock config has one number for all layers"
UNIFORM = "merge with `budget` = uniform, as the recipe m-smoe-uniform does"


@dataclass(frozen=True)
class Mapped:
    """A merged `checkpoint` with index maps, its stock `source`, and the members and dominant expert of each group.

    `order` [K] of a layer lists its merged experts as the stock model holds them; `members` and `dominants` have the
    same order. It is that of the merged checkpoint, but for routers that select inside groups of neighbouring experts:
    there, a merged expert keeps the routing group of its members.
    """

    source: Checkpoint
    checkpoint: Checkpoint
    family: Family
    layers: Sequence[MoELayer]
    order: Mapping[str, Sequence[int]]
    members: Mapping[str, Sequence[Sequence[int]]]
    dominants: Mapping[str, Sequence[int]]

    @property
    def kept(self) -> int:
        """Number K of experts that each layer keeps."""
        return len(self.dominants[self.layers[0].name])

    @property
    def groups(self) -> dict[str, list[list[int]]]:
        """The groups of each layer, each with its dominant expert first."""
        return {
            name: [[first, *(e for e in members if e != first)] for first, members in zip(firsts, self.members[name])]
            for name, firsts in self.dominants.items()
        }

    @cached_property
    def expert_axes(self) -> dict[str, int]:
        """See `Family.expert_axes`."""
        return self.family.expert_axes(self.source.config)

    @cached_property
    def others(self) -> dict[str, str]:
        """Name in the source → name in the mapped checkpoint, of all tensors outside experts."""
        source, held = self.source, set(self.checkpoint.names())
        found = contents(source.config, source.names(), source.directory)
        names = {**found.in_memory, **{name: name for name in found.mtp}}
        # Training does not save tensors that are tied to others.
        return {old: new for old, new in names.items() if new in held}


def open_mapped(source: Checkpoint, checkpoint: Checkpoint, plan: Path) -> Mapped:
    """Read how `checkpoint` was made from `source`, using the plan in the directory `plan`.

    Raises `CheckpointError` if `checkpoint` is not merged, if `source` is not stock, if experts were compressed, or if
    the two do not belong together; `PlanError` if the plan is missing or belongs to another checkpoint.
    """
    described = merged_layers(checkpoint.config)
    if not described:
        raise CheckpointError(f"{checkpoint.directory}: not a merged checkpoint, as merge and distill write them")
    if merged_layers(source.config) is not None:
        raise CheckpointError(f"{source.directory}: merged already; it must be the stock model")
    compressed = [name for name, layer in described.items() if "structure" in layer]
    if compressed:
        raise CheckpointError(
            f"{checkpoint.directory}: experts of {', '.join(compressed)} are compressed, which no stock class can "
            "hold: export what merge or distill wrote"
        )
    family = family_of(source.config)
    layers = family.layers(source.config)
    kept = {name: layer["experts"] for name, layer in described.items()}
    merged = family.merged_config(source.config, kept)
    if checkpoint.config["model_type"] != merged["model_type"] or set(kept) != {layer.name for layer in layers}:
        raise _apart(source, checkpoint, "another model")
    _check_shapes(source, checkpoint, family, layers, kept)
    planned = Plan.load(plan).layers
    held = {layer.name: _members(checkpoint, family, layer, kept[layer.name]) for layer in layers}
    order = {layer.name: _order(layer, held[layer.name]) for layer in layers}
    members = {name: [held[name][k] for k in slots] for name, slots in order.items()}
    dominants = {layer.name: _dominants(layer.name, members[layer.name], planned) for layer in layers}
    return Mapped(source, checkpoint, family, layers, order, members, dominants)


def _check_shapes(
    source: Checkpoint, checkpoint: Checkpoint, family: Family, layers: Sequence[MoELayer], kept: Mapping[str, int]
) -> None:
    for layer in layers:
        shapes = {family.merged_tensor(layer, name): shape for name, shape in layer.shapes().items()}
        for tensor, shape in shapes.items():
            if checkpoint.shape(tensor) != (kept[layer.name], *shape):
                raise _apart(source, checkpoint, f"{tensor} is {list(checkpoint.shape(tensor))}")


def _members(checkpoint: Checkpoint, family: Family, layer: MoELayer, kept: int) -> list[list[int]]:
    labels = checkpoint.tensor(family.merged_map(layer)).tolist()
    members = [[e for e, label in enumerate(labels) if label == k] for k in range(kept)]
    if len(labels) != layer.experts or not all(members):
        raise CheckpointError(f"{checkpoint.directory}: {layer.name}: the index map leaves an expert unused")
    return members


def _order(layer: MoELayer, members: Sequence[Sequence[int]]) -> list[int]:
    return sorted(range(len(members)), key=lambda k: min(routing_groups(layer, members[k])))


def routing_groups(layer: MoELayer, experts: Sequence[int]) -> set[int]:
    """Numbers of the groups, inside which the layer's router selects, that hold `experts`; {0} without groups."""
    return {e * layer.limit.groups // layer.experts if layer.limit else 0 for e in experts}


def _dominants(layer: str, members: Sequence[Sequence[int]], planned: Mapping[str, LayerPlan]) -> list[int]:
    """Dominant expert of each group. A group of one needs no plan, which does not know experts dropped in training."""
    chosen = {group.dominant for group in planned[layer].groups} if layer in planned else set()
    dominants = []
    for group in members:
        found = group if len(group) == 1 else [e for e in group if e in chosen]
        if len(found) != 1:
            raise PlanError(f"the plan is not that of the checkpoint: {layer} has a group {group}")
        dominants.append(found[0])
    return dominants


def _apart(source: Checkpoint, checkpoint: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.directory} was not made of {source.directory}: {what}")


def check_stock(mapped: Mapped) -> None:
    """Raise `CheckpointError` if layers differ in K, or if a router of the stock class cannot select among K.

    So it does for layers for multi-token prediction with experts of their own, of which they keep all.
    """
    source, held = mapped.source, set(mapped.others.values())
    draft = [name for name in contents(source.config, source.names(), source.directory).mtp_experts if name in held]
    if draft and mapped.kept < mapped.layers[0].experts:
        what = f"its layers for multi-token prediction have experts, which were not merged ({draft[0]}); {ONE_NUMBER}"
        raise CheckpointError(f"{mapped.checkpoint.directory}: {what}: export without them (`keep_mtp` false)")
    reason = obstacle(mapped.layers, {name: len(groups) for name, groups in mapped.members.items()})
    for layer in mapped.layers:
        reason = reason or scattered(layer, mapped.members[layer.name])
    if reason:
        raise CheckpointError(f"{mapped.checkpoint.directory}: {reason}")


def scattered(layer: MoELayer, members: Sequence[Sequence[int]]) -> str | None:
    """Why the merged experts with these members, in this order, do not fill the routing groups of a layer evenly.

    None if they do. The stock router takes the first K/n experts for its first routing group, and so on.
    """
    if layer.limit is None:
        return None
    each = len(members) // layer.limit.groups
    for k, group in enumerate(members):
        if routing_groups(layer, group) != {k // each}:
            return (
                f"the router of {layer.name} selects inside {layer.limit.groups} groups of neighbouring experts "
                f"(n_group), and a stock one needs {each} merged experts from inside each, which that of experts "
                f"{', '.join(map(str, group))} is not: keep the model with its index map"
            )
    return None


def recipe_obstacle(recipe: Recipe, merge: Merge, layers: Sequence[MoELayer]) -> str | None:
    """Why what `recipe` makes of `layers` cannot become a stock checkpoint, as far as is known before any work.

    `merge` has the budget of the recipe (`Recipe.with_budget`). None if nothing is known to stand in the way.
    """
    if recipe.progressive:
        return f"it drops experts during distillation, not equally many in each layer; {ONE_NUMBER}"
    if not GROUPERS.fact(recipe.grouping, "merges"):
        return None
    if merge.budget != "uniform":
        return f"`budget` = {merge.budget} lets layers keep different numbers of experts; {ONE_NUMBER}: {UNIFORM}"
    excluded = excluded_layers(merge.exclude, layers)
    kept = {layer.name: layer.experts if layer.name in excluded else int(merge.groups) for layer in layers}
    return obstacle(layers, kept)


def obstacle(layers: Sequence[MoELayer], kept: Mapping[str, int]) -> str | None:
    """Why no stock class can hold `layers` with `kept[layer name]` experts each; None if one can."""
    if len(set(kept.values())) > 1:
        untouched = ", ".join(layer.name for layer in layers if kept[layer.name] == layer.experts)
        if untouched:
            return f"{untouched} keep all their experts, others do not; {ONE_NUMBER}: {UNIFORM}, and without `exclude`"
        return f"layers keep {min(kept.values())} to {max(kept.values())} experts; {ONE_NUMBER}: {UNIFORM}"
    for layer in layers:
        reason = cannot_route(layer, kept[layer.name])
        if reason:
            return f"{layer.name} keeps {kept[layer.name]} experts, but {reason}"
    return None


def cannot_route(layer: MoELayer, kept: int) -> str | None:
    """Why the stock router of a layer cannot select among `kept` experts; None if it can."""
    if kept < layer.top_k:
        return f"its router selects {layer.top_k}: merge to at least as many groups"
    limit = layer.limit
    if limit is None:
        return None
    if kept % limit.groups:
        return f"its router has {limit.groups} groups (n_group): merge to a multiple of them"
    size = kept // limit.groups
    if limit.kept * size < layer.top_k:
        return (
            f"its router selects {layer.top_k} inside {limit.kept} of {limit.groups} groups (topk_group, n_group), "
            f"which hold {limit.kept * size}: merge to more groups"
        )
    if size < limit.scored:
        return f"its router scores a group by {limit.scored} experts: merge to at least {limit.scored * limit.groups}"
    return None


def stock_config(mapped: Mapped) -> str:
    """The text of config.json of the stock checkpoint: that of the source, with another number of experts."""
    return with_expert_count(
        mapped.source.config_text, mapped.family.expert_counts, mapped.layers[0].experts, mapped.kept
    )


def write_stock(mapped: Mapped, routers: Mapping[str, Tensor], directory: Path, store: Store | None = None) -> Written:
    """Write the mapped checkpoint to `directory`, with the tensor names and layout of its source.

    `routers` are the replaced tensors, by their name in the mapped checkpoint. Peak memory, whatever the number of
    layers: two copies of one expert's tensor. Returns what was written; for shards and `store` see `write_parts`.
    Raises `CheckpointError` for values that are not finite, and `DiskFullError` if the disk is full.
    """
    source, checkpoint, family = mapped.source, mapped.checkpoint, mapped.family
    parts = []
    for layer in mapped.layers:
        specs = {}
        for tensor, entry, _, names in expert_shares(layer, mapped.kept):
            shape = source.shape(tensor)
            dtype = checkpoint.dtype(family.merged_tensor(layer, names[0]))
            rows = shape[0] if entry is None else shape[0] // layer.experts * mapped.kept
            specs[tensor] = TensorSpec(dtype, (rows, *shape[1:]))
        parts.append(Part(layer.name, specs, partial(_shares, mapped, layer, specs)))

    def other(tensor: str) -> Tensor:
        name = mapped.others[tensor]
        return routers[name] if name in routers else checkpoint.tensor(name)

    others = {}
    for tensor, name in mapped.others.items():
        shape = tuple(routers[name].shape) if name in routers else checkpoint.shape(name)
        others[tensor] = TensorSpec(checkpoint.dtype(name), shape)
    written = write_parts(directory, [*parts, *other_parts(others, other)], "export", store)
    (directory / "config.json").write_bytes(stock_config(mapped).encode())
    complete(directory, source.directory)
    return written


def _shares(mapped: Mapped, layer: MoELayer, specs: Mapping[str, TensorSpec]) -> Iterator[Piece]:
    for tensor, entry, k, names in expert_shares(layer, mapped.kept):
        spec = specs[tensor]
        # NaN, so that the writer refuses a piece with entries left unfilled.
        value = torch.full(piece_shape(spec, entry), torch.nan, dtype=spec.dtype)
        for name in names:
            ours = mapped.checkpoint.part(mapped.family.merged_tensor(layer, name), mapped.order[layer.name][k])
            layer.places[name].view(value).copy_(ours)
        yield Piece(tensor, entry, value)
