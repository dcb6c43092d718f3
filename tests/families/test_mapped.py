import torch

from mcsmoe.families.experts import mapped_model
from tests.models import EXPERTS, tiny_switch


def test_every_expert_keeps_its_slot_and_weights_are_copies():
    stock = tiny_switch().train()
    mapped = mapped_model(stock)
    assert mapped.training
    assert mapped.generation_config == stock.generation_config
    for mlp in mapped.sparse_mlps().values():
        assert torch.equal(mlp.expert_map, torch.arange(EXPERTS))
        assert mlp.experts.num_experts == len(mlp.experts.wi.weight) == EXPERTS
    mapped.shared.weight.data.zero_()
    assert stock.shared.weight.abs().max() > 0
    assert mapped.lm_head.weight is mapped.shared.weight
