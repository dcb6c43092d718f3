from pathlib import Path
from typing import Any

import pytest
import torch

from mcsmoe.architectures.exclude import excluded_layers
from mcsmoe.architectures.registry import sparse_layers
from mcsmoe.errors import CheckpointError, ParameterError, UnknownNameError
from mcsmoe.params import Params
from mcsmoe.recipes.load import known_recipes, load_recipe, validate_recipes
from mcsmoe.recipes.plan import make_plan
from mcsmoe.routing.statistics import LayerStatistics, RoutingStatistics
from tests.models import EXPERTS, tiny_switch
from tests.recipes.params import small_params

METHODS = ["none", "m-smoe", "average", "one"]


def params(**changes: Any) -> Params:
    return Params.parse(small_params() | changes)


def layers():
    return sparse_layers(tiny_switch().config)


def statistics(experts: int = EXPERTS) -> RoutingStatistics:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for layer in layers():
        sums = LayerStatistics.zeros(experts, 2)
        sums.coselection += torch.diag(torch.randint(0, 50, (experts,), generator=generator).double())
        logits = torch.randn(30, experts, generator=generator, dtype=torch.float64)
        sums.logits_gram += logits.T @ logits
        made[layer.name] = sums
    return RoutingStatistics(made)


def plan(method: str, **changes: Any):
    values = params(**changes)
    return make_plan(method, load_recipe(method, values), values.merge, statistics(), layers())


def test_every_recipe_of_the_package_loads():
    assert set(METHODS) <= set(known_recipes(params()))
    validate_recipes(params(methods={"merge": METHODS, "distill": [], "compress": []}), layers())


def test_what_the_recipes_do():
    merged, average, one, none = (plan(name) for name in ("m-smoe", "average", "one", "none"))
    assert (merged.rule, merged.alignment) == ("frequency", "weight")
    assert (average.rule, average.alignment) == ("average", "none")
    assert average.layers == merged.layers
    assert set(one.experts.values()) == {1}
    assert sum(merged.experts.values()) == 2 * len(layers())
    assert all(not layer.merged for layer in none.layers.values())


def test_a_recipe_can_be_changed_and_added_in_params():
    new = {"m-smoe": {"rule": "average"}, "mine": {**load_recipe("one", params()).model_dump(), "groups": 3}}
    values = params(recipes=new)
    assert load_recipe("m-smoe", values).rule == "average"
    assert load_recipe("m-smoe", values).alignment == "weight"
    assert load_recipe("mine", values).groups == 3


def test_unknown_method():
    with pytest.raises(UnknownNameError, match="unknown method 'm-smo'; known: average, m-smoe, none, one"):
        validate_recipes(params(methods={"merge": ["m-smo"], "distill": [], "compress": []}))


@pytest.mark.parametrize("key", ["similarity", "grouping", "alignment", "reference", "rule"])
def test_unknown_part_of_a_recipe(key: str):
    with pytest.raises(UnknownNameError, match=rf"recipes\.m-smoe\.{key} 'nonsense'; known: "):
        load_recipe("m-smoe", params(recipes={"m-smoe": {key: "nonsense"}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m-smoe": {"rul": "average"}}, r"recipes\.m-smoe\.rul = 'average'"),
        ({"m-smoe": {"groups": "many"}}, r"recipes\.m-smoe\.groups = 'many'"),
        ({"mine": {"rule": "average"}}, r"recipes\.mine\.similarity"),
    ],
)
def test_bad_recipe(change: dict[str, Any], message: str):
    with pytest.raises(ParameterError, match=message):
        load_recipe(next(iter(change)), params(recipes=change))


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"groups": EXPERTS + 1}, "merge.groups = 9"),
        ({"groups": EXPERTS + 1, "budget": "uniform"}, "merge.groups = 9"),
        ({"exclude": {"encoder": [2], "decoder": []}}, r"merge.exclude.encoder = 2.*sparse are \[1, 3\]"),
    ],
)
def test_budget_or_layer_that_is_not_there(merge: dict[str, Any], message: str):
    values = params(merge=small_params()["merge"] | merge)
    with pytest.raises(ParameterError, match=message):
        validate_recipes(values, layers())


def test_groups_of_a_recipe_are_checked_under_its_own_name():
    with pytest.raises(ParameterError, match=r"recipes\.one\.groups = 0"):
        validate_recipes(params(recipes={"one": {"groups": 0}}), layers())


def test_excluded_layers():
    exclude = params(merge=small_params()["merge"] | {"exclude": {"encoder": [1], "decoder": [3]}}).merge.exclude
    assert excluded_layers(exclude, layers()) == ["encoder.1", "decoder.3"]


def test_statistics_of_another_checkpoint():
    values = params()
    recipe = load_recipe("m-smoe", values)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        make_plan("m-smoe", recipe, values.merge, statistics(EXPERTS * 2), layers())


def test_recipes_are_files_of_their_names():
    directory = Path(load_recipe.__code__.co_filename).parent
    assert {path.stem for path in directory.glob("*.yaml")} == set(METHODS)
