"""Every recipe of the package, from collected statistics to a checkpoint that loads, on a model with known copies."""

from pathlib import Path

import pytest
import torch

from mcsmoe.alignment.matching import permute
from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.observer import layer_tokens
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.families import family_of
from mcsmoe.families.experts import read_expert
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import Material, write_merged
from mcsmoe.methods.planning import make_plan
from mcsmoe.methods.recipe import known_recipes, load_recipe, validate_recipes
from mcsmoe.model import Model
from mcsmoe.params import Params
from mcsmoe.similarity.correlation import measure_correlations
from tests.methods.params import small_params
from tests.models import batch, tiny_switch

ALSO = ["input-gram", "norms", "outputs", "pair-errors", "correlation", "gradients", "exact-fisher"]
BUDGET = 4 * 2


def calibration():
    return [batch(24, seed) | {"labels": batch(24, seed)["decoder_input_ids"]} for seed in (3, 4)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """(checkpoint, material): in every layer experts 2k and 2k + 1 are permuted copies of each other."""
    model = tiny_switch(num_experts=4, d_ff=16, d_model=16)
    generator = torch.Generator().manual_seed(0)
    family = family_of(model.config)
    layers = family.layers(model.config)
    with torch.no_grad():
        for layer in layers:
            for e in range(0, layer.experts, 2):
                twin = {name: model.get_parameter(layer.places[name].name(e)) for name in layer.layout}
                order = torch.randperm(layer.d_ff, generator=generator)
                for name, value in permute(twin, layer.layout, order).items():
                    model.get_parameter(layer.places[name].name(e + 1)).copy_(value)
            router = model.get_parameter(layer.router_weight)
            router[1::2] = router[::2] + 0.02 * torch.randn(router[::2].shape, generator=generator)
    directory = tmp_path_factory.mktemp("planted")
    model.save_pretrained(directory)
    statistics = collect(model, family, layers, calibration(), also=ALSO)
    statistics.directory = directory
    statistics.measured = measure_correlations(model, family, layers, calibration())
    rows = [{name: value[:2] for name, value in calibration()[0].items()}]
    write_gradients(directory, model, layers, rows, ALSO)
    tokens = dict(layer_tokens(model, family, layers, calibration()))
    return Checkpoint(directory), Material(statistics, Gradients(directory), lambda layer: tokens[layer.name])


@pytest.fixture(scope="module")
def params():
    collected = small_params()["collect"] | {"also": ALSO}
    methods = {"merge": known_recipes(), "distill": [], "compress": [], "dense": []}
    values = Params.parse(small_params() | {"collect": collected, "methods": methods})
    validate_recipes(values)
    return values


def merged(name: str, planted, params: Params, directory: Path) -> tuple[Plan, torch.Tensor]:
    """The plan of a recipe, and what the merged model that loads computes."""
    source, material = planted
    recipe = load_recipe(name, params.recipes)
    plan = make_plan(name, recipe, params.merge, material.statistics, Model(source.directory))
    write_merged(source, plan, material, directory)
    with torch.no_grad():
        logits: torch.Tensor = load_model(directory)(**batch()).logits
    return plan, logits


@pytest.mark.parametrize("name", known_recipes())
def test_it_keeps_to_its_budget_and_loads(name, planted, params, tmp_path):
    plan, logits = merged(name, planted, params, tmp_path)
    experts = {"none": 16, "task-specific": 16, "one": 4}.get(name, BUDGET)
    assert sum(plan.experts.values()) == experts
    assert logits.isfinite().all()
    if name == "task-specific":
        assert plan.keep == BUDGET


@pytest.mark.parametrize("rule", ["frequency", "average", "repair", "fisher", "exact-fisher", "random", "dominant"])
def test_merging_exact_copies_changes_nothing(rule, planted, params, tmp_path):
    """The right groups are found by what experts compute, whatever the order of their neurons."""
    # Routing-guided grouping could not: both copies of one expert may be dominant.
    changed = {"by-expert-output": {"rule": rule, "budget": "uniform", "grouping": "hierarchical-average"}}
    values = params.model_copy(update={"recipes": changed})
    plan, logits = merged("by-expert-output", planted, values, tmp_path)
    source, _ = planted
    for layer in plan.layers.values():
        assert sorted(group.members for group in layer.groups) == [(0, 1), (2, 3)]
    with torch.no_grad():
        full = load_model(source.directory)(**batch()).logits
    torch.testing.assert_close(logits, full, rtol=0, atol=1e-5)


def test_the_copies_are_no_copies_weight_by_weight(planted):
    """Otherwise the test above would say nothing about alignment."""
    source, _ = planted
    layer = family_of(source.config).layers(source.config)[0]
    first, second = (read_expert(source, layer, e) for e in (0, 1))
    assert not torch.allclose(first["wi"], second["wi"], atol=0.1)
