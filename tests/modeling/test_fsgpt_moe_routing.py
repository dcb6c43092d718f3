"""Routing, training and configuration of fairseq's mixture-of-experts GPT."""

import pytest
import torch

from mcsmoe.modeling.configuration_fsgpt_moe import FSGPTMoEConfig
from tests.modeling.fsgpt import logits, tiny_fsgpt, tokens


def router(**changes):
    """A router of three experts whose logits are its input."""
    found = tiny_fsgpt(hidden_size=4, num_heads=1, num_experts=3, **changes).decoder.layers[1].ffn.router
    found.classifier.weight = torch.nn.Parameter(torch.eye(3, 4))
    return found


class TestRouter:
    # Experts by falling probability: 0 1 2, 0 2 1, 0 1 2, 1 0 2.
    TOKENS = torch.tensor([[3, 2, 1, 0], [3, 1, 2, 0], [5, 4, 0, 0], [0.5, 1, -1, 0]])
    CHOICES: tuple[list[int], ...] = ([0, 1], [0, 2], [0, 1], [1, 0])

    @staticmethod
    def gates(row):
        first, second = row.sort(descending=True).values[:2].exp()
        return torch.stack([first, second]) / (first + second)

    def test_the_two_best_share_the_weight(self):
        found, weights, index = router()(self.TOKENS)
        assert torch.equal(found, self.TOKENS[:, :3])
        assert index.tolist() == list(self.CHOICES)
        torch.testing.assert_close(weights, torch.stack([self.gates(row) for row in self.TOKENS[:, :3]]))

    @pytest.mark.parametrize("before", [True, False])
    def test_first_choices_come_before_second_ones(self, before):
        changes = {"moe_eval_capacity_token_fraction": -1, "normalize_router_prob_before_dropping": before}
        _, weights, index = router(expert_capacity=2, **changes)(self.TOKENS)
        # Expert 0 takes tokens 0 and 1, expert 1 token 3 and then token 0, expert 2 token 1.
        kept = torch.tensor([[1, 1], [1, 1], [0, 0], [1, 0]])
        gates = torch.stack([self.gates(row) for row in self.TOKENS[:, :3]])
        want = gates * kept if before else torch.stack([gates[0], gates[1], torch.zeros(2), torch.tensor([1.0, 0])])
        torch.testing.assert_close(weights, want)
        assert index.tolist() == list(self.CHOICES)

    def test_padding_takes_no_room_where_it_is_not_routed(self):
        settings = {"moe_eval_capacity_token_fraction": -1, "expert_capacity": 1, "router_ignore_padding_tokens": False}
        real = torch.tensor([False, True, True, True])
        _, weights, _ = router(**settings)(self.TOKENS, real)
        assert (weights > 0).tolist() == [[False, False], [True, True], [False, False], [True, False]]
        block = tiny_fsgpt(**settings | {"expert_capacity": 8}).decoder.layers[1].ffn
        out = block(torch.randn(1, 4, 32), real[None])[0]
        assert ((out != 0).any(-1) == real).all()

    @pytest.mark.parametrize(
        ("changes", "tokens", "capacity"),
        [
            ({"moe_eval_capacity_token_fraction": 0.5}, 7, 4),
            ({"moe_eval_capacity_token_fraction": 0.5, "expert_capacity": 3}, 7, 4),
            ({"moe_eval_capacity_token_fraction": -1.0, "expert_capacity": 3}, 7, 3),
            ({"moe_eval_capacity_token_fraction": -1.0}, 7, 6),
        ],
    )
    def test_capacity(self, changes, tokens, capacity):
        found = router(**changes)
        assert found.capacity(tokens) == capacity
        assert found.train().capacity(tokens) == (changes.get("expert_capacity") or 6)

    def test_bias(self):
        found = router(router_bias=True)
        found.classifier.bias = torch.nn.Parameter(torch.tensor([0.0, 0.0, 9.0]))
        assert found(self.TOKENS)[2][:, 0].tolist() == [2, 2, 2, 2]


class TestTraining:
    def test_masked_expert_outputs_have_the_expected_value_of_evaluation(self):
        block = tiny_fsgpt(moe_token_dropout=0.3, expert_capacity=20000).decoder.layers[1].ffn
        hidden = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(2)).expand(1, 20000, 32)
        real = torch.ones(1, 20000, dtype=torch.bool)
        with torch.no_grad():
            want = block(hidden[:, :1], real[:, :1])[0, 0]
            torch.manual_seed(3)
            found = block.train()(hidden, real)[0]
        assert len(found.unique(dim=0)) == 4  # both experts, either, none
        torch.testing.assert_close(found.mean(0), want, atol=0.05 * want.abs().max().item(), rtol=0)

    def test_gradients_with_and_without_checkpointing(self):
        model = tiny_fsgpt().train()
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            torch.manual_seed(4)
            model(tokens(), labels=tokens(), use_cache=False).loss.backward()
            gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
        assert all(torch.allclose(value, gradients[1][name], atol=1e-6) for name, value in gradients[0].items())
        assert gradients[0]["decoder.layers.1.ffn.router.classifier.weight"].any()

    def test_half_precision(self):
        found = tiny_fsgpt().bfloat16()(tokens()).logits
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), logits(tiny_fsgpt(), input_ids=tokens()), atol=3, rtol=0.1)

    def test_without_sparse_layers(self):
        found = tiny_fsgpt(sparse_step=0)
        assert not [name for name, _ in found.named_parameters() if "experts" in name]
        assert logits(found, input_ids=tokens()).isfinite().all()


def test_an_intermediate_size_of_null_is_four_times_the_hidden_size():
    assert FSGPTMoEConfig(hidden_size=48, intermediate_size=None).intermediate_size == 192


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("hidden_size", 30, "a multiple of 4 above 2"),
        ("activation_function", "gelo", "one of .*gelu"),
        ("sparse_step", -1, "0 .* or more"),
        ("num_experts", 1, "2 or more"),
        ("expert_capacity", 0, "null, or 1 or more"),
        ("moe_token_dropout", 1.5, "from 0 to 1"),
        ("router_dtype", "int8", "float32, bfloat16 or float16"),
        ("second_expert_policy", "sampling", "'all'; the others draw random numbers"),
        ("second_expert_policy", "random", "'all'"),
        ("batch_prioritized_routing", True, "false"),
    ],
)
def test_values_that_are_not_supported_are_refused_in_one_line(field, value, allowed):
    with pytest.raises(ValueError, match=rf"^{field} = {value!r} in the configuration: allowed is {allowed}") as error:
        tiny_fsgpt(**{field: value})
    assert "\n" not in str(error.value)
