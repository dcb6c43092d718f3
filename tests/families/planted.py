"""Small models of every family in which experts are planted as copies of each other, and what is made of them."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.families import MoELayer, family_of
from mcsmoe.families.experts import expert_in_memory
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import write_merged
from tests.families.models import EXPERTS, batch
from tests.merging.material import nothing_measured

GROUPS = EXPERTS // 2
"""Experts e and EXPERTS − 1 − e are planted as one expert with its hidden neurons in another order.

No other pairing would do as well: e and e + GROUPS is what an index map says before a checkpoint fills it.
"""


class Made(NamedTuple):
    model: Any
    layers: list[MoELayer]
    checkpoint: Checkpoint


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        value: Tensor = model(**batch()).logits
    return value


def save(model: Any, directory: Path) -> Made:
    model.save_pretrained(directory)
    return Made(model, family_of(model.config).layers(model.config), Checkpoint(directory))


def plant(model: Any) -> None:
    """Make the twin of expert e compute what e computes, by neurons in another order."""
    generator = torch.Generator().manual_seed(7)
    for layer in family_of(model.config).layers(model.config):
        for e in range(GROUPS):
            order = torch.randperm(layer.d_ff, generator=generator)
            twin = expert_in_memory(model, layer, EXPERTS - 1 - e)
            for name, value in expert_in_memory(model, layer, e).items():
                axis = layer.layout[name].hidden_axis
                twin[name].data.copy_(value.data if axis is None else value.data.index_select(axis, order))


def plan_of(layers: list[MoELayer]) -> Plan:
    groups = tuple(Group(e, (e, EXPERTS - 1 - e), (0.3, 0.1)) for e in range(GROUPS))
    return Plan(
        "planted", "frequency", "weight", "dominant", {layer.name: LayerPlan(groups, merged=True) for layer in layers}
    )


def merge(made: Made, directory: Path) -> Checkpoint:
    directory.mkdir()
    write_merged(made.checkpoint, plan_of(made.layers), nothing_measured(made.layers), directory)
    return Checkpoint(directory)
