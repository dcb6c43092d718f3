"""Applying a plan to a checkpoint, tensor by tensor: a pure function of (checkpoint, plan, what was measured)."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mcsmoe.alignment.apply import permute
from mcsmoe.architectures.experts import read_expert
from mcsmoe.architectures.layer import Expert, Family, MoELayer, TensorSource
from mcsmoe.grouping.plan import Group, Plan
from mcsmoe.merging.align import ALIGNMENTS, REFERENCES
from mcsmoe.merging.material import Material
from mcsmoe.merging.registry import RULES, Members


def merge_group(source: TensorSource, layer: MoELayer, group: Group, plan: Plan, material: Material) -> Expert:
    """One merged expert: the members, aligned to the plan's reference, combined by its rule."""
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
        # Another draw for each group, the same on every machine.
        seed=zlib.crc32(f"{material.seed}/{layer.name}/{group.dominant}".encode()),
    )
    return RULES[plan.rule](members)


class MergedTensors:
    """The tensors of the merged checkpoint, each made when it is asked for.

    Asked layer by layer, at most the K merged experts of one layer and the members of one group are in
    memory.
    """

    def __init__(
        self,
        source: TensorSource,
        family: Family,
        layers: Sequence[MoELayer],
        plan: Plan,
        material: Material,
        others: Mapping[str, str],
    ) -> None:
        """`others`: names here → names in the source, of what is no expert."""
        self._source, self._plan, self._material, self._others = source, plan, material, others
        self._stacks = {family.merged_tensor(layer, name): (layer, name) for layer in layers for name in layer.layout}
        self._maps = {family.merged_map(layer): layer for layer in layers}
        self._merged: tuple[str, list[Expert]] = ("", [])

    def chunks(self, name: str) -> Iterable[Tensor]:
        """The parts of one tensor along its first axis, in order: expert by expert for a stack [K, ...]."""
        if name in self._stacks:
            return self._stack(*self._stacks[name])
        if name in self._maps:
            return [self._plan.layers[self._maps[name].name].expert_map]
        return [self._source.tensor(self._others[name])]

    def _stack(self, layer: MoELayer, name: str) -> Iterator[Tensor]:
        plan = self._plan.layers[layer.name]
        if not plan.merged:
            for group in plan.groups:
                yield layer.read(self._source, group.dominant, name)
            return
        if self._merged[0] != layer.name:
            self._merged = ("", [])  # the layer before goes before this one comes
            merged = [merge_group(self._source, layer, group, self._plan, self._material) for group in plan.groups]
            self._merged = (layer.name, merged)
        yield from (expert[name] for expert in self._merged[1])
