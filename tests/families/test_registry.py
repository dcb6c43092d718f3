import pytest
from transformers import CONFIG_MAPPING

from mcsmoe.errors import CheckpointError
from mcsmoe.families.names import REFUSED
from mcsmoe.families.registry import family_of, sparse_layers
from tests.models import tiny_merged, tiny_switch


@pytest.mark.parametrize("build", [tiny_switch, tiny_merged])
def test_families_are_found_by_model_type(build):
    config = build().config
    assert family_of(config).model_type == config.model_type
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
