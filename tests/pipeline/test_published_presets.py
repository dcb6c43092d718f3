"""Presets of published models: what they say of disk, memory and hours is what their shapes and numbers give."""

import json

import pytest
import transformers

from benchmarks.hours import RESULTS, Work, estimate, training
from benchmarks.needs import PRESETS, SHAPES, needs
from mcsmoe.exporting.stock import recipe_obstacle
from mcsmoe.families import sparse_layers
from mcsmoe.methods.resolved import ResolvedMethod
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


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_preset_merges_can_be_exported(name: str):
    params = Params.load(PRESETS / f"{name}.yaml")
    layers = sparse_layers(transformers.AutoConfig.for_model(**SHAPES[name]))
    found = {}
    for method in params.methods.merge:
        resolved = ResolvedMethod.of(method, params)
        found[method] = recipe_obstacle(resolved.recipe, resolved.merge, layers)
    assert found.pop("m-smoe-uniform") is None
    assert "its router selects" in str(found["one"])  # the control, which nobody exports


def test_the_papers_table_states_the_hours_and_the_memory_that_it_takes():
    results = json.loads((RESULTS / "hours.json").read_text())
    found = json.loads(json.dumps(estimate(results["measured"])))
    # Neither the formula nor a preset has changed since.
    assert {name: results[name] for name in found} == found
    lines = (PRESETS / "paper-table2.yaml").read_text().splitlines()
    head = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    for kind in found["table"].values():
        assert f"{kind['RTX 4090']:,} on an RTX 4090" in head
        assert f"{kind['H100 SXM']:,} on an H100" in head
    memory = found["memory"]
    names = {"finetune": "finetune", "distill, merged": "distill", "compress": "compress"}
    assert all(f"{name} {memory[key]}" in head for key, name in names.items())
    assert f"task-specific {memory['distill, task-specific']}" in head


def test_a_training_costs_three_passes_of_the_student_and_one_of_the_teacher():
    settings = Params.load(PRESETS / "switch-base-32-copa.yaml").distill
    epochs, batch = settings.epochs, settings.batch_size
    assert training(80, settings, 5.0, 7.0, 11) == Work(epochs * 80 * 22, epochs * 80 / batch * 11 * 11)
    more = training(80, settings, 5.0, 7.0, 11, fixed=2.0)
    assert more.flops == pytest.approx(epochs * (80 * 22 + 80 / batch * 6))
