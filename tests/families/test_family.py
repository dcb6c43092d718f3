import pytest
from torch.nn import Module
from transformers import CONFIG_MAPPING

from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of, sparse_layers
from mcsmoe.model_types import REFUSED
from tests.models import tiny_merged, tiny_switch


@pytest.mark.parametrize("build", [tiny_switch, tiny_merged])
def test_families_are_found_by_model_type(build):
    config = build().config
    assert family_of(config).model_type == "switch_transformers"
    assert family_of(config.to_dict()) is family_of(config)
    assert sparse_layers(config.to_dict()) == sparse_layers(config)


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {}])
def test_another_architecture_is_refused_by_name(config):
    with pytest.raises(CheckpointError, match=r"(bert|None).*switch_transformers"):
        family_of(config)


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_refused_has_a_reason(model_type):
    assert model_type in CONFIG_MAPPING  # a user may have one
    with pytest.raises(CheckpointError, match=f"{model_type}' is not supported: {REFUSED[model_type]}$"):
        family_of({"model_type": model_type})


def test_one_family_answers_for_its_stock_and_its_merged_form():
    stock, merged = tiny_switch().config, tiny_merged().config
    assert family_of(merged) is family_of(stock)
    assert [layer.name for layer in sparse_layers(merged)] == [layer.name for layer in sparse_layers(stock)]
    again = family_of(merged).merged_config(merged, {})
    assert again["model_type"] == merged.model_type


def test_a_dense_model_has_no_layers_and_no_merged_form():
    config = {"model_type": "t5"}
    t5 = family_of(config)
    assert t5.layers(config) == []
    assert t5.outside(config)["shared.weight"] == "shared.weight"
    for ask in (lambda: t5.merged_config(config, {}), lambda: t5.expert_axes(config), lambda: t5.routing(Module(), ())):
        with pytest.raises(CheckpointError, match="a T5 is dense: there are no experts"):
            ask()


def test_the_dense_baseline_has_the_sizes_of_the_sparse_model():
    config = tiny_switch().config
    family = family_of(config)
    values = family.dense_config(config)
    assert values["model_type"] == family.dense_type == "t5"
    assert values["d_ff"] == config.d_ff
    assert family.dense_config(config.to_dict()) == values


def test_a_family_without_a_dense_baseline_says_so():
    family = family_of({"model_type": "mixtral"})
    assert family.dense_type is None
    with pytest.raises(CheckpointError, match="mixtral has no dense counterpart"):
        family.dense_config({"model_type": "mixtral"})
