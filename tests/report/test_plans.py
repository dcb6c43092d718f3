"""Plans as people read them, and what is told of two that differ."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from mcsmoe.errors import PlanError, UnknownNameError
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.report.plans import Difference, LayerDifference, LayerOutline, layer_outline, outline, shown, shown_layer

MERGED = LayerPlan((Group(3, (0, 2, 3), (0.1, 0.2, 0.5)), Group(1, (1,), (0.2,))), merged=True)
DROPPED = LayerPlan((Group(1, (0, 1), (0.25, 0.75)),), merged=True, dropped=(2, 3))
LEFT = LayerPlan.untouched(torch.tensor([0.5, 0.25, 0.125, 0.125]))
LAYERS = {"decoder.0": MERGED, "decoder.1": DROPPED, "decoder.2": LEFT}
PLAN = Plan("m-smoe", "frequency", "weight", "dominant", LAYERS)


def test_the_outline_of_a_layer():
    assert LayerOutline.of(MERGED) == LayerOutline(4, 2, 0, 3, in_groups=0.8, given_up=0.3)
    assert LayerOutline.of(DROPPED) == LayerOutline(4, 1, 2, 2, in_groups=1.0, given_up=0.25)
    assert LayerOutline.of(LEFT) == LayerOutline(4, 4, 0, 1, in_groups=0.0, given_up=0.0)
    unused = LayerPlan((Group(0, (0, 1), (0.0, 0.0)),), merged=True)
    assert LayerOutline.of(unused) == LayerOutline(2, 1, 0, 2, in_groups=None, given_up=None)


def test_a_plan_as_text():
    plan = replace(PLAN, excluded=("decoder.2",))
    lines = shown(plan).splitlines()
    assert lines[0] == "m-smoe"
    assert "experts     7 of 12 kept in 3 layers" in lines
    assert "dropped     2 experts, to which the router gives no probability" in lines
    assert "alignment   weight, to the dominant expert of a group" in lines
    assert "left alone  decoder.2" in lines
    assert [line.split() for line in lines if line.startswith("decoder")] == [
        ["decoder.0", "4", "2", "3", "80.0", "%", "30.0", "%"],
        ["decoder.1", "4", "1", "2", "100.0", "%", "25.0", "%"],
        ["decoder.2", "4", "4", "1", "0.0", "%", "0.0", "%"],
    ]
    assert "until 5 are left" in shown(replace(PLAN, keep=5))
    assert "left alone" not in shown(PLAN)
    assert max(map(len, lines)) <= 120


def test_a_plan_as_json():
    values = json.loads(json.dumps(outline(PLAN)))
    assert (values["method"], values["experts"], values["kept"], values["dropped"]) == ("m-smoe", 12, 7, 2)
    assert values["layers"]["decoder.0"] == asdict(LayerOutline.of(MERGED))


def test_the_groups_of_a_layer():
    lines = shown_layer(PLAN, "decoder.0").splitlines()
    assert lines[0] == "decoder.0: 4 experts, 2 kept"
    assert [line.split() for line in lines[2:]] == [
        ["3", "80.0", "%", "3,", "2,", "0"],
        ["1", "20.0", "%", "1"],
    ]
    assert shown_layer(PLAN, "decoder.1").splitlines()[-1] == "dropped: 2, 3"
    assert layer_outline(PLAN, "decoder.1")["groups"][0]["members"] == (0, 1)
    for ask in (shown_layer, layer_outline):
        with pytest.raises(UnknownNameError, match=r"unknown layer 'x'; known: decoder\.0, decoder\.1, decoder\.2"):
            ask(PLAN, "x")


def groups(*members: tuple[int, ...], dropped: tuple[int, ...] = ()) -> LayerPlan:
    return LayerPlan(tuple(Group(each[0], each, (1.0,) * len(each)) for each in members), True, dropped)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (groups((0, 1), (2, 3)), groups((2, 3), (0, 1)), LayerDifference((2, 2), 0, 0, 1.0, 0)),
        (groups((0, 1), (2, 3)), groups((0, 1, 2), (3,)), LayerDifference((2, 2), 4, 3, 0.5, 2)),
        (groups((0, 1, 2, 3)), groups((0,), (1,), (2,), (3,)), LayerDifference((1, 4), 4, 6, 0.0, 3)),
        (groups((0, 1), (2,), (3,)), groups((0, 1), (2,), dropped=(3,)), LayerDifference((3, 2), 1, 0, 1.0, 1)),
        (groups((0,)), groups((0,)), LayerDifference((1, 1), 0, 0, 1.0, 0)),
    ],
)
def test_in_what_two_layers_differ(first: LayerPlan, second: LayerPlan, expected: LayerDifference):
    assert LayerDifference.of(first, second) == expected


def test_equal_plans():
    found = Difference.of(PLAN, replace(PLAN))
    assert found.equal
    assert str(found) == "the plans are equal"


def test_equal_groups_of_other_settings_or_importance():
    assert str(Difference.of(PLAN, replace(PLAN, rule="average"))) == (
        "rule: frequency → average\nall groups are equal, with equal dominant experts"
    )
    heavier = LayerPlan((Group(3, (0, 2, 3), (0.2, 0.2, 0.5)), Group(1, (1,), (0.2,))), merged=True)
    found = Difference.of(PLAN, replace(PLAN, layers=LAYERS | {"decoder.0": heavier}))
    assert not found.equal
    assert str(found).endswith("with equal dominant experts; only the importance of experts differs")


def test_plans_with_other_groups():
    other = replace(PLAN, method="mine", layers=LAYERS | {"decoder.0": groups((0, 1), (2, 3))})
    found = Difference.of(PLAN, other)
    lines = str(found).splitlines()
    assert lines[:2] == ["method: m-smoe → mine", "2 of 3 layers have equal groups"]
    assert lines[-1].split() == ["decoder.0", "2", "4", "3", "0.500", "4"]
    values = json.loads(json.dumps(found.to_json()))
    assert values["settings"] == {"method": ["m-smoe", "mine"]}
    assert values["layers"]["decoder.1"]["pairs"] == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"decoder.0": groups((0, 1))}, r"different models: decoder\.0 has 4 experts in the first, 2 in the second"),
        ({"decoder.9": groups((0, 1))}, r"different models: decoder\.9 has 0 experts in the first, 2 in the second"),
    ],
)
def test_plans_of_different_models(layers: dict[str, LayerPlan], message: str):
    with pytest.raises(PlanError, match=message):
        Difference.of(PLAN, replace(PLAN, layers=LAYERS | layers))
