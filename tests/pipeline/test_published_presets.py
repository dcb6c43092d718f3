"""Presets of published models: what they say of disk and memory is what their shapes give."""

import pytest

from benchmarks.needs import PRESETS, SHAPES, needs
from mcsmoe.params import Params

NUMBERS = {
    "mixtral-8x7b": 46.7,
    "qwen3-30b-a3b": 30.5,
    "olmoe-1b-7b": 6.9,
    "deepseek-v2-lite": 15.7,
    "gpt-oss-20b": 20.9,
}
"""Billions of parameters, as published."""


@pytest.mark.parametrize("name", SHAPES)
def test_a_preset_states_what_it_needs(name: str):
    path = PRESETS / f"{name}.yaml"
    found = needs(Params.load(path), SHAPES[name])
    assert found.pop("parameters") == NUMBERS[name]
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert all(str(value) in head for value in found.values())
