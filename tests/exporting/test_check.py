"""What cannot become a stock checkpoint, named before any work."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.compression.factorise import factorise_model
from mcsmoe.errors import CheckpointError, PlanError
from mcsmoe.exporting.stock import check_stock, open_mapped, recipe_obstacle
from mcsmoe.families import MoELayer, family_of
from mcsmoe.grouping.plan import PLAN, Group, LayerPlan
from mcsmoe.methods.recipe import load_recipe
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.params import Exclude, Params
from tests.compression.settings import compress
from tests.exporting.models import EXPERTS, PAIRS, SWITCH, in_pairs, merge, plan_of, small
from tests.families.models import small_model
from tests.methods.params import small_params


def into(kept: int) -> Callable[[MoELayer], LayerPlan]:
    """Each layer's experts in `kept` groups."""

    def groups(layer: MoELayer) -> LayerPlan:
        members = [tuple(range(k, EXPERTS, kept)) for k in range(kept)]
        return LayerPlan(tuple(Group(group[0], group, (0.1,) * len(group)) for group in members), merged=True)

    return groups


def unlike(layers: Mapping[str, Callable[[MoELayer], LayerPlan]]) -> Callable[[MoELayer], LayerPlan]:
    return lambda layer: layers.get(layer.name, in_pairs)(layer)


def untouched(layer: MoELayer) -> LayerPlan:
    return LayerPlan.untouched(torch.ones(EXPERTS))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (unlike({"encoder.1": into(2)}), "layers keep 2 to 4 experts; .* as the recipe m-smoe-uniform does"),
        (unlike({"decoder.3": untouched}), r"decoder\.3 keep all their experts.*and without `exclude`"),
    ],
)
def test_layers_that_differ(groups: Callable[[MoELayer], LayerPlan], message: str, tmp_path: Path):
    merged = merge(small(SWITCH), tmp_path, groups)
    with pytest.raises(CheckpointError, match=message):
        check_stock(merged.mapped)


@pytest.mark.parametrize(
    ("model_type", "changes", "kept", "message"),
    [
        ("mixtral", {}, 1, r"decoder\.0 keeps 1 experts, but its router selects 2: merge to at least"),
        ("deepseek_v3", {}, 6, r"4 groups \(n_group\): merge to a multiple"),
        ("deepseek_v3", {}, 4, "selects 3 inside 2 of 4 groups .*, which hold 2: merge to more"),
        ("deepseek_v3", {"topk_group": 4}, 4, "scores a group by 2 experts: merge to at least 8"),
        ("deepseek_v2", {"topk_group": 4}, 4, "needs 1 merged experts from inside each, which that of experts 0, 4 is"),
        ("deepseek_v2", {"topk_method": "greedy"}, 3, None),
        ("dots1", {"n_group": 1}, 4, None),
        ("gpt_oss", {}, 3, None),
    ],
)
def test_routers_that_cannot_select(
    model_type: str, changes: dict[str, object], kept: int, message: str | None, tmp_path: Path
):
    mapped = merge(small_model(model_type, **changes), tmp_path, into(kept)).mapped
    if message is None:
        check_stock(mapped)
    else:
        with pytest.raises(CheckpointError, match=message):
            check_stock(mapped)


@pytest.mark.parametrize(
    ("method", "model_type", "changes", "reason"),
    [
        ("m-smoe", "mixtral", {}, "`budget` = global lets layers keep different numbers"),
        ("m-smoe-uniform", "mixtral", {}, None),
        ("one", "mixtral", {}, r"decoder\.0 keeps 1 experts, but its router selects 2"),
        ("none", "mixtral", {}, None),
        (
            "m-smoe-uniform",
            "mixtral",
            {"exclude": Exclude(encoder=[], decoder=[1])},
            r"^decoder\.1 keep all .* without",
        ),
        ("m-smoe-uniform", "deepseek_v3", {"groups": 6}, r"4 groups \(n_group\): merge to a multiple"),
        ("pruning-excluded", SWITCH, {"budget": "uniform"}, None),
        ("task-specific", SWITCH, {"budget": "uniform"}, "drops experts during distillation"),
    ],
)
def test_recipes_whose_result_has_no_stock_form(
    method: str, model_type: str, changes: dict[str, Any], reason: str | None
):
    """Known before any work, with the words of `check_stock`."""
    params = Params.parse(small_params())
    recipe = load_recipe(method, params.recipes)
    merge = recipe.with_budget(params.merge.model_copy(update=changes))
    config = small(SWITCH).config if model_type == SWITCH else small_model(model_type).config
    found = recipe_obstacle(recipe, merge, family_of(config).layers(config))
    assert found is None if reason is None else re.search(reason, found or "")


def test_checkpoints_of_another_kind(tmp_path: Path):
    mapped = merge(small(SWITCH), tmp_path).mapped
    source, merged = mapped.source, mapped.checkpoint
    with pytest.raises(CheckpointError, match="source: not a merged checkpoint"):
        open_mapped(source, source, merged.directory)
    with pytest.raises(CheckpointError, match="merged: merged already; it must be the stock model"):
        open_mapped(merged, merged, merged.directory)
    small(SWITCH, d_ff=32).save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"was not made of .*narrow: .*wi\.weight is \[4, 48, 32\]$"):
        open_mapped(Checkpoint(tmp_path / "narrow"), merged, merged.directory)
    small("mixtral").save_pretrained(tmp_path / "mixtral")
    with pytest.raises(CheckpointError, match=r"was not made of .*mixtral: another model"):
        open_mapped(Checkpoint(tmp_path / "mixtral"), merged, merged.directory)


def test_compressed_experts(tmp_path: Path):
    mapped = merge(small(SWITCH), tmp_path).mapped
    model = load_model(mapped.checkpoint.directory)
    factorise_model(model, compress(rank=2, final_ratio=0.25), FactorisedLinears.from_factors)
    model.update_config()
    model.save_pretrained(tmp_path / "compressed")
    with pytest.raises(CheckpointError, match=r"experts of decoder\.1, .* are compressed"):
        open_mapped(mapped.source, Checkpoint(tmp_path / "compressed"), mapped.checkpoint.directory)


def test_plans_that_are_missing_or_of_another_checkpoint(tmp_path: Path):
    mapped = merge(small(SWITCH), tmp_path).mapped
    source, directory = mapped.source, mapped.checkpoint.directory
    layers = family_of(source.config).layers(source.config)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(PlanError, match=r"other: no plan\.json$"):
        open_mapped(source, mapped.checkpoint, other)
    for groups in (untouched, into(1)):
        plan_of(layers, groups).save(other)
        with pytest.raises(PlanError, match=r"the plan is not that of the checkpoint: encoder\.1 "):
            open_mapped(source, mapped.checkpoint, other)
    plan = json.loads((directory / PLAN).read_text())
    (other / PLAN).write_text(json.dumps(plan | {"layers": {}}))
    with pytest.raises(CheckpointError, match=r"the plan is not that of the checkpoint: encoder\.1"):
        open_mapped(source, mapped.checkpoint, other)


def test_experts_that_are_alone_are_dominant_whatever_the_plan_says(tmp_path: Path):
    """As after distilling `task-specific`, which drops experts that the plan still has."""
    one = LayerPlan((Group(5, (5,), (1.0,)),), merged=True, dropped=(0, 1, 2, 3, 4, 6, 7))
    mapped = merge(small(SWITCH), tmp_path, lambda layer: one).mapped
    layers = family_of(mapped.source.config).layers(mapped.source.config)
    plan_of(layers, untouched).save(tmp_path / "merged")
    again = open_mapped(mapped.source, mapped.checkpoint, tmp_path / "merged")
    assert {tuple(dominants) for dominants in again.dominants.values()} == {(5,)}
    check_stock(again)


def test_dominant_experts_are_the_plans(tmp_path: Path):
    mapped = merge(small(SWITCH), tmp_path).mapped
    assert {tuple(dominants) for dominants in mapped.dominants.values()} == {tuple(g.dominant for g in PAIRS)}
    assert all(members == [list(g.members) for g in PAIRS] for members in mapped.members.values())
