import json

import pytest

from mcsmoe.errors import CheckpointError
from mcsmoe.exporting.config import with_expert_count

NAMES = ("num_local_experts", "num_experts", "ffn.n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"num_experts": 8}', '{"num_experts": 4}'),
        ('{"a": 1e-06,\r\n\t"num_experts" :8, "é": 8}\n', '{"a": 1e-06,\r\n\t"num_experts" :4, "é": 8}\n'),
        ('{"x": {"num_experts": 8}, "num_experts": 8}', '{"x": {"num_experts": 8}, "num_experts": 4}'),
        ('{"num_experts": 8, "x": {"num_experts": 8}}', '{"num_experts": 4, "x": {"num_experts": 8}}'),
        ('{"num_experts": 8, "num_local_experts": 8}', '{"num_experts": 4, "num_local_experts": 4}'),
        ('{"num_experts_per_tok": 8, "num_experts": 8}', '{"num_experts_per_tok": 8, "num_experts": 4}'),
        ('{"n": 8, "ffn": {"m": 8, "n": 8}, "x": {"n": 8}}', '{"n": 8, "ffn": {"m": 8, "n": 4}, "x": {"n": 8}}'),
    ],
)
def test_one_number_changes(before: str, after: str):
    assert with_expert_count(before, NAMES, 8, 4) == after


def test_the_same_number_changes_nothing():
    text = json.dumps({"num_experts": 8}, indent=3)
    assert with_expert_count(text, NAMES, 8, 8) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"experts": 8}', "no number of experts; known names: num_local_experts, num_experts, ffn.n"),
        ('{"num_experts": [8, 4]}', r"num_experts = \[8, 4\] in config.json of the source, whose layers have 8"),
        ('{"num_experts": 8, "num_local_experts": 16}', "num_local_experts = 16"),
    ],
)
def test_what_is_no_number_of_experts(text: str, message: str):
    with pytest.raises(CheckpointError, match=message):
        with_expert_count(text, NAMES, 8, 4)
