"""Applying a plan to a checkpoint, group by group: a pure function of (checkpoint, plan, what was measured)."""

import zlib
from collections.abc import Iterator

import torch

from mcsmoe.alignment.apply import permute
from mcsmoe.architectures.experts import read_expert
from mcsmoe.architectures.layer import Expert, Family, MoELayer, TensorSource
from mcsmoe.checkpoint.piece import Piece
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


def merged_pieces(
    source: TensorSource, family: Family, layer: MoELayer, plan: Plan, material: Material
) -> Iterator[Piece]:
    """The index map and the merged experts of one layer; each is made when the one before it is taken."""
    groups = plan.layers[layer.name]
    yield Piece(family.merged_map(layer), None, groups.expert_map)
    for k, group in enumerate(groups.groups):
        merged = merge_group(source, layer, group, plan, material)
        for name in layer.layout:
            yield Piece(family.merged_tensor(layer, name), k, merged.pop(name))
