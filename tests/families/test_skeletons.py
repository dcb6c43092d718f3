import json

import pytest
import torch
from transformers import MixtralForCausalLM

from mcsmoe.families import configuration, empty_model, family_of, skeleton
from tests.causal import tiny_mixtral
from tests.models import tiny_merged, tiny_switch

BUILDS = [tiny_mixtral, tiny_switch, tiny_merged]


def described(model):
    return {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("build", BUILDS)
def test_a_skeleton_has_the_tensors_of_the_model_and_no_memory(build):
    model = build()
    found = skeleton(model.config)
    assert type(found).__name__ == type(model).__name__
    assert described(found) == described(model)
    assert all(value.is_meta for value in found.state_dict().values())
    assert len(set(found.parameters())) == len(set(model.parameters()))  # tied ones are one


@pytest.mark.parametrize("build", BUILDS)
def test_equal_configurations_share_a_skeleton(build):
    config = build().config
    again = configuration(json.loads(config.to_json_string(use_diff=False)))
    assert skeleton(config) is skeleton(config.to_dict())
    assert skeleton(config) is skeleton(again)


def test_what_shapes_a_model_makes_another_skeleton_and_nothing_else_does():
    config = tiny_mixtral().config
    values = config.to_dict()
    assert skeleton(values | {"architectures": ["Other"], "_name_or_path": "elsewhere"}) is skeleton(config)
    assert len(skeleton(values | {"num_hidden_layers": 3}).model.layers) == 3
    half = skeleton(values | {"dtype": "bfloat16"})
    assert next(half.parameters()).dtype == half.config.dtype == torch.bfloat16


def test_a_skeleton_is_nobody_elses():
    config = tiny_mixtral().config
    config.dtype = None
    found = skeleton(config)
    assert found.config.dtype == torch.float32
    assert config.dtype is None
    config.num_hidden_layers = 1
    assert len(found.model.layers) == found.config.num_hidden_layers == 2


def test_the_layers_of_the_merged_form_are_those_of_the_stock_skeleton():
    config = tiny_mixtral().config
    family = family_of(config)
    merged = family.merged_config(config, {"decoder.0": 2})
    layers = family.layers(config)
    assert [layer.places for layer in family.layers(merged)] == [layer.places for layer in layers]
    assert skeleton(merged).get_parameter(family.merged_tensor(layers[0], "up")).shape[0] == 2


def test_an_empty_model_is_new_each_time_and_has_what_is_computed():
    model = tiny_mixtral()
    first, second = empty_model(model.config), empty_model(model.config, torch.float16)
    assert first is not second
    assert all(value.is_meta for value in first.parameters())
    assert {value.dtype for value in second.parameters()} == {torch.float16}
    real, computed = dict(model.named_buffers()), dict(first.named_buffers())
    assert real
    assert all(torch.equal(computed[name], value) for name, value in real.items())


def test_an_empty_model_of_a_class_that_is_named():
    class Other(MixtralForCausalLM):
        pass

    assert isinstance(empty_model(tiny_mixtral().config, model_class=Other), Other)
