import pytest
import torch

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.families import Role, sparse_layers
from mcsmoe.families.experts import InMemory, forward, hidden, read_expert
from tests.alignment.experts import RELU, activation
from tests.models import tiny_merged, tiny_switch


def test_an_expert_computes_what_the_model_computes(tmp_path):
    model = tiny_switch()
    model.save_pretrained(tmp_path)
    layer = sparse_layers(model.config)[2]
    expert = read_expert(Checkpoint(tmp_path), layer, 5)
    tokens = torch.randn(7, layer.d_model)
    module = model.get_submodule(f"{layer.path}.experts.expert_5")
    assert torch.allclose(forward(expert, layer.layout, layer.activation, tokens), module(tokens), atol=1e-6)
    assert torch.equal(hidden(expert, layer.layout, RELU, tokens) > 0, module.wi(tokens) > 0)


@pytest.mark.parametrize("name", ["relu", "silu", "gelu"])
def test_gated_experts_with_biases(name):
    layout = {role.value: role for role in Role}
    shapes = {
        "gate": (6, 4),
        "up": (6, 4),
        "down": (4, 6),
        "gate-bias": (6,),
        "up-bias": (6,),
        "down-bias": (4,),
    }
    expert = {name: torch.randn(shape) for name, shape in shapes.items()}
    tokens = torch.randn(3, 4)
    act = getattr(torch.nn.functional, name)
    inner = act(tokens @ expert["gate"].T + expert["gate-bias"]) * (tokens @ expert["up"].T + expert["up-bias"])
    want = inner @ expert["down"].T + expert["down-bias"]
    assert torch.allclose(forward(expert, layout, activation(name), tokens), want, atol=1e-5)


def test_parameters_and_buffers_in_memory():
    model = tiny_merged()
    source = InMemory(model)
    path = "encoder.block.1.layer.1.mlp"
    assert source.tensor("shared.weight") is model.shared.weight
    assert source.tensor(f"{path}.expert_map") is model.get_submodule(path).expert_map
    assert torch.equal(source.part("shared.weight", slice(2, 5)), model.shared.weight[2:5])
