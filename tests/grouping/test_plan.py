from pathlib import Path

import pytest
import torch

from mcsmoe.errors import PlanError
from mcsmoe.grouping.plan import PLAN, Group, LayerPlan, Plan


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
