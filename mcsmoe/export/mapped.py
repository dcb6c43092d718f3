"""A merged checkpoint beside the stock one that it was made of, as far as it can become a stock one itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mcsmoe.architectures.layer import Family, MoELayer
from mcsmoe.architectures.registry import family_of, merged_layers
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.grouping.plan import PLAN, LayerPlan, Plan


@dataclass(frozen=True)
class Mapped:
    """Stock `source`, mapped `checkpoint`, and by layer the members of the K experts and which of them is dominant."""

    source: Checkpoint
    checkpoint: Checkpoint
    family: Family
    layers: Sequence[MoELayer]
    members: Mapping[str, Sequence[Sequence[int]]]
    dominants: Mapping[str, Sequence[int]]

    @property
    def kept(self) -> int:
        """Experts K that each layer keeps."""
        return len(self.dominants[self.layers[0].name])

    @cached_property
    def others(self) -> dict[str, str]:
        """Name in the source → name in the mapped checkpoint, of what is no expert."""
        layers, held = self.layers, set(self.checkpoint.names())
        experts = {place.name(e) for layer in layers for e in range(layer.experts) for place in layer.places.values()}
        names = self.family.merged_names(self.source.config, [n for n in self.source.names() if n not in experts])
        # Training saves no tensor that is tied to another one.
        return {old: new for old, new in names.items() if new in held}


def open_mapped(source: Checkpoint, checkpoint: Checkpoint, plan: Path) -> Mapped:
    """Read how `checkpoint` was made of `source`, by the plan in the directory `plan`.

    Raises `CheckpointError` where one of them is not of its kind, where experts were compressed, and where the three
    do not belong together.
    """
    described = merged_layers(checkpoint.config)
    if not described:
        raise CheckpointError(f"{checkpoint.directory}: not a merged checkpoint, as merge and distill write them")
    if merged_layers(source.config) is not None:
        raise CheckpointError(f"{source.directory}: merged already; --source is the stock model, as permute writes it")
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
    if not (plan / PLAN).is_file():
        raise CheckpointError(f"{plan}: no {PLAN}; say --plan artifacts/merge/METHOD, where merge wrote it")
    planned = Plan.load(plan).layers
    members = {layer.name: _members(checkpoint, family, layer, kept[layer.name]) for layer in layers}
    dominants = {layer.name: _dominants(layer.name, members[layer.name], planned) for layer in layers}
    return Mapped(source, checkpoint, family, layers, members, dominants)


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


def _dominants(layer: str, members: Sequence[Sequence[int]], planned: Mapping[str, LayerPlan]) -> list[int]:
    """A group of one needs no plan: a model whose experts were dropped in training is not what its plan says."""
    chosen = {group.dominant for group in planned[layer].groups} if layer in planned else set()
    dominants = []
    for group in members:
        found = group if len(group) == 1 else [e for e in group if e in chosen]
        if len(found) != 1:
            raise CheckpointError(f"the plan is not that of the checkpoint: {layer} has a group {group}; see --plan")
        dominants.append(found[0])
    return dominants


def _apart(source: Checkpoint, checkpoint: Checkpoint, what: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.directory} was not made of {source.directory}: {what}; see --source")
