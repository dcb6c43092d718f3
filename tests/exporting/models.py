"""Small models merged to K experts a layer, opened for export."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcsmoe.checkpoint.published import Published
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.exporting.routers import ROWS
from mcsmoe.exporting.stock import Mapped, open_mapped, write_stock
from mcsmoe.exporting.write import Agreement, stock_routers
from mcsmoe.families import MoELayer, family_of
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import write_merged
from tests import models
from tests.families import models as families
from tests.merging.material import nothing_measured

SWITCH = "switch_transformers"
EXPERTS, KEPT = 8, 4
PAIRS = tuple(Group((7, 1, 5, 3)[k], (k, EXPERTS - 1 - k), (0.3, 0.1)) for k in range(KEPT))
"""Experts k and 7 − k become one; dominant is now the one, now the other."""
DOMINANTS = torch.tensor([group.dominant for group in PAIRS])
CHANGES = {name: {"n_group": 2, "topk_group": 2} for name in ("deepseek_v2", "deepseek_v3")}
"""So that four experts can be routed to: in groups of two, all of which may be selected from."""


class Merged(NamedTuple):
    model: Any
    mapped: Mapped


def small(model_type: str, **changes: Any) -> Any:
    """A stock model of any family."""
    if model_type == SWITCH:
        return models.tiny_switch(**changes)
    return families.small_model(model_type, **CHANGES.get(model_type, {}) | changes)


def inputs(model: Any) -> dict[str, Tensor]:
    """What goes into the model's forward."""
    return models.batch() if model.config.is_encoder_decoder else families.batch()


def calibration(model: Any) -> list[dict[str, Tensor]]:
    """One batch as calibration has it."""
    given = inputs(model)
    labels = given.pop("decoder_input_ids", given["input_ids"])
    return [given | {"labels": labels}]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits on `inputs`."""
    value: Tensor = model(**inputs(model)).logits
    return value


def plan_of(layers: Sequence[MoELayer], groups: Callable[[MoELayer], LayerPlan]) -> Plan:
    """One plan for all layers."""
    return Plan("test", "frequency", "weight", "dominant", {layer.name: groups(layer) for layer in layers})


def in_pairs(layer: MoELayer) -> LayerPlan:
    """`PAIRS` in each layer."""
    return LayerPlan(PAIRS, merged=True)


def merge(
    model: Any, directory: Path, groups: Callable[[MoELayer], LayerPlan] = in_pairs, source: Path | None = None
) -> Merged:
    """`model` saved as directory/source (unless it is in `source`), merged as directory/merged, and opened."""
    if source is None:
        source = directory / "source"
        model.save_pretrained(source)
    return merge_saved(model, Published(Checkpoint(source)), directory, groups)


def merge_saved(
    model: Any, source: Checkpoint, directory: Path, groups: Callable[[MoELayer], LayerPlan] = in_pairs
) -> Merged:
    """`model`, which `source` holds, merged as directory/merged and opened."""
    layers = family_of(source.config).layers(source.config)
    (directory / "merged").mkdir(parents=True)
    write_merged(source, plan_of(layers, groups), nothing_measured(layers), directory / "merged")
    return Merged(model, open_mapped(source, Checkpoint(directory / "merged"), directory / "merged"))


def export(merged: Merged, directory: Path, rule: str = "dominant") -> Agreement:
    """Write the stock checkpoint into `directory`; gives the agreement of each layer."""
    tensors, agreement = stock_routers(merged.mapped, ROWS[rule], merged.model, calibration(merged.model))
    directory.mkdir()
    write_stock(merged.mapped, tensors, directory)
    return agreement
