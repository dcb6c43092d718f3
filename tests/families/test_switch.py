import pytest
import torch

from mcsmoe.families import family_of, sparse_layers
from tests.models import EXPERTS, KEPT, batch, tiny_merged, tiny_switch


@pytest.mark.parametrize("sparse", [1, 2, 4])
def test_layers_are_those_of_the_model(sparse):
    model = tiny_switch(num_sparse_encoder_layers=sparse, num_sparse_decoder_layers=sparse)
    layers = sparse_layers(model.config)
    assert len(layers) == 2 * sparse
    assert [layer.stack for layer in layers] == ["encoder"] * sparse + ["decoder"] * sparse
    routers = [name for name, module in model.named_modules() if name.endswith(".router")]
    assert routers == [layer.router_path for layer in layers]
    state = model.state_dict()
    for layer in layers:
        assert state[layer.places["wi"].name(EXPERTS - 1)].shape == (layer.d_ff, layer.d_model)


def test_old_configuration_files_without_sparse_steps():
    values = tiny_switch().config.to_dict()
    del values["encoder_sparse_step"], values["decoder_sparse_step"]
    assert [layer.name for layer in sparse_layers(values)] == [
        "encoder.1",
        "encoder.3",
        "decoder.1",
        "decoder.3",
    ]


def test_merged_names_are_those_of_the_merged_model():
    model = tiny_merged()
    family, state = family_of(model.config), model.state_dict()
    for layer in family.layers(model.config):
        assert state[family.merged_map(layer)].shape == (EXPERTS,)
        assert state[family.merged_tensor(layer, "wo")].shape == (KEPT[layer.name], layer.d_model, layer.d_ff)


def test_merged_config_keeps_all_else():
    source = tiny_switch().config.to_dict()
    values = family_of(source).merged_config(source, {"encoder.1": 2})
    assert values["moe_layers"]["encoder.1"]["experts"] == 2
    assert values["moe_layers"]["decoder.3"]["experts"] == EXPERTS
    changed = {"model_type", "architectures", "auto_map", "moe_layers"}
    assert {key: values[key] for key in source.keys() - changed} == {
        key: source[key] for key in source.keys() - changed
    }


@pytest.mark.parametrize("build", [tiny_switch, tiny_merged])
def test_routing_is_selection_before_capacity(build):
    seen = []
    for capacity in (1000, 1):
        model = build(expert_capacity=capacity)
        family = family_of(model.config)
        layer = family.layers(model.config)[0]
        block, router = model.get_submodule(layer.path), model.get_submodule(layer.router_path)
        router.register_forward_hook(lambda _, __, output, f=family, b=block: seen.append(f.routing(b, output)))
        with torch.no_grad():
            model(**batch())
    free, full = seen
    assert free.logits.shape == (55, EXPERTS)
    assert free.index.shape == free.gates.shape == (55, 1)
    assert torch.equal(free.index, full.index)
    assert torch.equal(free.gates, full.gates)
    assert torch.allclose(free.gates, free.logits.softmax(-1).gather(1, free.index))


@pytest.mark.parametrize("capacity", [0, 1000, 2])
def test_hastened_experts_compute_the_same_bits(capacity: int):
    found = []
    for hasten in (False, True):
        torch.manual_seed(0)
        model = tiny_switch(expert_capacity=capacity, dropout_rate=0.1).train()
        if hasten:
            family_of(model.config).hasten(model)
        output = model(**batch())
        output.logits.square().mean().backward()
        found.append({"logits": output.logits} | {name: p.grad for name, p in model.named_parameters()})
    stock, hastened = found
    assert capacity == 2 or any(value is None for value in stock.values())  # an expert without tokens gets no gradient
    assert [n for n, v in stock.items() if (v is None) != (hastened[n] is None)] == []
    assert [n for n, v in stock.items() if v is not None and not torch.equal(v, hastened[n])] == []


def test_a_merged_model_is_not_hastened():
    model = tiny_merged()
    family_of(model.config).hasten(model)
    assert not any("forward" in vars(module) for module in model.modules())
