import json
from pathlib import Path

import pytest
import torch

from mcsmoe.errors import PlanError
from mcsmoe.grouping.plan import PLAN, Group, LayerPlan, Plan
from mcsmoe.report.plans import Difference, outline, shown
from tests.mutations import COUNT, mutated, right_or_one_line


def example() -> Plan:
    merged = LayerPlan((Group(2, (0, 2), (0.1, 0.7)), Group(1, (1,), (0.2,))), merged=True)
    left = LayerPlan.untouched(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    return Plan("m-smoe", "frequency", "weight", "dominant", {"encoder.1": merged, "decoder.1": left})


def test_expert_map_and_counts():
    plan = example()
    assert plan.layers["encoder.1"].expert_map.tolist() == [0, 1, 0]
    assert plan.layers["encoder.1"].expert_map.dtype == torch.int64
    assert plan.experts == {"encoder.1": 2, "decoder.1": 3}


def test_save_and_load(tmp_path: Path):
    example().save(tmp_path)
    assert Plan.load(tmp_path) == example()


def test_one_line_a_group(tmp_path: Path):
    example().save(tmp_path)
    lines = (tmp_path / PLAN).read_text().splitlines()
    assert '        {"dominant": 2, "members": [0, 2], "weights": [0.1, 0.7]},' in lines


@pytest.mark.parametrize("text", ["", "[]", '{"layers": {}}', '{"layers": {"a": {"groups": [{}]}}}'])
def test_damaged_plan(tmp_path: Path, text: str):
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(PlanError, match="not a plan"):
        Plan.load(tmp_path)


def test_missing_plan(tmp_path: Path):
    with pytest.raises(PlanError, match=r": no plan\.json$"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"dominant": 2', '"dominant": 1', "encoder.1: expert 1 is dominant in a group that it is no member of"),
        ('"members": [1]', '"members": [0]', "encoder.1: each expert must be in one group, or be dropped"),
        ('"members": [1]', '"members": [3]', "encoder.1: each expert must be in one group, or be dropped"),
        ('"members": [0, 2]', '"members": [2, 0]', "encoder.1: .* not in ascending order"),
        ('"members": [0, 2]', '"members": [0, 2.5]', "members.1: .* valid integer"),
        ('"members": [0, 2]', '"members": [0, true]', "members.1: .* valid integer"),
        ("[0.1, 0.7]", "[0.1]", "expert 2 needs a weight for each member"),
        ("[0.1, 0.7]", "[1e308, 1e308]", "encoder.1: the weights have no finite sum"),
        ("[0.1, 0.7]", "[0.1, NaN]", "NaN is no number"),
        ("[0.1, 0.7]", "[0.1, 1e999]", "1e999 is no number"),
        ('"dropped": []', '"dropped": [2]', "encoder.1: each expert must be in one group, or be dropped"),
        ('"merged": true', '"merged": false', "encoder.1: it is not merged, but holds groups of several experts"),
        ('"keep": null', '"keep": 9', "keep = 9: the layers have 6 experts"),
        ('"excluded": []', '"excluded": ["encoder.2"]', "excluded: no layer is called 'encoder.2'"),
        ('"rule"', '"ruel"', "rule: Field required"),
        ('"rule"', '"more": 1, "rule"', "more: "),
        ('"decoder.1"', '"encoder.1"', "the key 'encoder.1' twice"),
    ],
)
def test_a_plan_that_cannot_be(tmp_path: Path, before: str, after: str, message: str):
    example().save(tmp_path)
    text = (tmp_path / PLAN).read_text()
    assert before in text
    (tmp_path / PLAN).write_text(text.replace(before, after, 1))
    with pytest.raises(PlanError, match=message):
        Plan.load(tmp_path)


def test_a_plan_for_another_model():
    example().check_model({"encoder.1": 3, "decoder.1": 3})
    for experts in ({"encoder.1": 3}, {"encoder.1": 3, "decoder.1": 4}, {"encoder.1": 3, "decoder.1": 3, "x": 1}):
        with pytest.raises(PlanError, match=r"the plan is for another model: .* has .* experts, in the model"):
            example().check_model(experts)


def test_damaged_plans_are_one_line(tmp_path: Path):
    example().save(tmp_path)
    whole = (tmp_path / PLAN).read_bytes()
    for seed in range(COUNT):
        (tmp_path / PLAN).write_bytes(mutated(whole, seed))
        with right_or_one_line():
            found = Plan.load(tmp_path)
            json.dumps([outline(found), Difference.of(example(), found).to_json()], allow_nan=False)
            assert shown(found)
