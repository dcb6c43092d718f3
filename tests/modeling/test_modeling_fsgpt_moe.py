import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mcsmoe.modeling import FSGPTMoEConfig, FSGPTMoEForCausalLM
from tests.modeling.fsgpt import BATCHES, EXPERTS, FSGPT, SPARSE, golden_batch, golden_model, tiny_fsgpt, tokens
from tests.shared import needs_golden

WEIGHTS = "model.safetensors"
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "suppress_tokens": [1]}


@torch.no_grad()
def logits(model, **inputs):
    return model(**inputs).logits


def same_bytes(found, wanted):
    """Tensors by name are the same bit by bit, NaN too."""
    return found.keys() == wanted.keys() and all(
        found[name].numpy().tobytes() == wanted[name].numpy().tobytes() for name in wanted
    )


@needs_golden
class TestGolden:
    """Recorded by the reference implementation. Logits reach 66, where float32 has steps of 7.6e-6."""

    @staticmethod
    def compare(model, recorded, number):
        """Logits of all positions, router logits, and weights after capacity."""
        wanted = load_file(FSGPT / recorded)
        weights: dict[int, torch.Tensor] = {}

        def record(layer):
            def hook(_, __, found):
                weights[layer] = torch.zeros_like(found[0]).scatter(1, found[2], found[1])

            return hook

        for layer in SPARSE:
            model.decoder.layers[layer].ffn.router.register_forward_hook(record(layer))
        with torch.no_grad():
            found = model(**golden_batch(number))
        torch.testing.assert_close(found.logits, wanted[f"batch{number}.logits"], atol=1e-5, rtol=1e-5)
        for layer, router_logits in zip(SPARSE, found.router_logits, strict=True):
            name = f"batch{number}.{{}}.{layer}"
            torch.testing.assert_close(router_logits, wanted[name.format("router_logits")], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(weights[layer], wanted[name.format("router_probs")], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
    @pytest.mark.parametrize("number", range(BATCHES))
    def test_forward(self, number, implementation):
        self.compare(golden_model(experts_implementation=implementation), "forward.safetensors", number)

    @pytest.mark.parametrize(("number", "capacity"), [(0, None), (1, None), (2, 16)])
    def test_default_capacity(self, number, capacity):
        """The reference keeps the capacity of the first batch it ever sees, here 2 · 64 / 8, for all that follow."""
        model = golden_model(moe_eval_capacity_token_fraction=-1.0, expert_capacity=capacity)
        self.compare(model, "default_capacity.safetensors", number)

    def test_attention_implementations_agree(self):
        found = logits(golden_model(attn_implementation="eager"), **golden_batch(0))
        torch.testing.assert_close(found, logits(golden_model(), **golden_batch(0)), atol=1e-5, rtol=1e-5)

    def test_loads_whole_and_is_saved_under_the_same_names_bit_by_bit(self, tmp_path):
        model, report = FSGPTMoEForCausalLM.from_pretrained(FSGPT, output_loading_info=True)
        assert not any(report.values())
        assert model.lm_head.weight is model.decoder.embed_tokens.weight
        model.save_pretrained(tmp_path)
        assert same_bytes(load_file(tmp_path / WEIGHTS), load_file(FSGPT / WEIGHTS))

    def test_pickled_weights_load(self, tmp_path):
        (tmp_path / "config.json").write_text((FSGPT / "config.json").read_text())
        torch.save(load_file(FSGPT / WEIGHTS), tmp_path / "pytorch_model.bin")
        model, report = FSGPTMoEForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        torch.testing.assert_close(logits(model.eval(), **golden_batch(0)), logits(golden_model(), **golden_batch(0)))

    def test_stored_fields_survive(self, tmp_path):
        FSGPTMoEConfig.from_pretrained(FSGPT).save_pretrained(tmp_path)
        stored, again = (json.loads((path / "config.json").read_text()) for path in (FSGPT, tmp_path))
        assert stored | {"transformers_version": again["transformers_version"]} == {key: again[key] for key in stored}
        assert again["model_type"] == "fsgpt_moe"


FRESH_PROCESS = """
import sys
sys.modules["mcsmoe"] = None
import torch, transformers
from safetensors.torch import load_file, save_file
directory, probe, result = sys.argv[1:]
torch.set_num_threads(1)
model = transformers.AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
with torch.no_grad():
    save_file({"logits": model.eval()(**load_file(probe)).logits}, f"{result}/logits.safetensors")
model.save_pretrained(result)
"""


class TestOnDisk:
    def test_expert_e_is_row_e_of_the_stacks(self, tmp_path):
        model = tiny_fsgpt()
        model.save_pretrained(tmp_path)
        stored, experts = load_file(tmp_path / WEIGHTS), model.decoder.layers[3].ffn.experts
        for expert in range(EXPERTS):
            path = f"decoder.layers.3.ffn.experts.expert_{expert}"
            assert torch.equal(stored[f"{path}.fc1.weight"], experts.up_proj[expert])
            assert torch.equal(stored[f"{path}.fc1.bias"], experts.up_proj_bias[expert])
            assert torch.equal(stored[f"{path}.fc2.weight"], experts.down_proj[expert])
            assert torch.equal(stored[f"{path}.fc2.bias"], experts.down_proj_bias[expert])
        again = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert type(again) is FSGPTMoEForCausalLM
        assert same_bytes(again.state_dict(), model.state_dict())

    def test_a_missing_expert_is_told(self, tmp_path):
        tiny_fsgpt().save_pretrained(tmp_path)
        stored = load_file(tmp_path / WEIGHTS)
        del stored["decoder.layers.1.ffn.experts.expert_3.fc2.bias"]
        save_file(stored, tmp_path / WEIGHTS, metadata={"format": "pt"})
        options = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        _, report = FSGPTMoEForCausalLM.from_pretrained(tmp_path, **options)
        ((name, *shapes),) = report["mismatched_keys"]
        assert name == "decoder.layers.1.ffn.experts.down_proj_bias"
        assert shapes == [torch.Size([EXPERTS - 1, 32]), torch.Size([EXPERTS, 32])]

    def test_device_map_offload_to_disk(self, tmp_path):
        model = tiny_fsgpt()
        model.save_pretrained(tmp_path / "saved")
        whole = ("decoder.embed_tokens", "decoder.embed_positions", "decoder.layer_norm", "lm_head")
        offloaded = FSGPTMoEForCausalLM.from_pretrained(
            tmp_path / "saved",
            device_map=dict.fromkeys(whole, "cpu") | {"decoder.layers": "disk"},
            offload_folder=tmp_path / "offload",
        )
        assert offloaded.decoder.layers[1].ffn.experts.up_proj.is_meta
        found = logits(offloaded.eval(), input_ids=tokens())
        torch.testing.assert_close(found, logits(model, input_ids=tokens()), atol=1e-5, rtol=1e-5)

    def test_remote_code_in_a_process_without_this_package(self, tmp_path):
        saved, result, probe = tmp_path / "saved", tmp_path / "result", tmp_path / "probe.safetensors"
        model = tiny_fsgpt()
        model.save_pretrained(saved)
        result.mkdir()
        save_file({"input_ids": tokens()}, probe)
        run = subprocess.run(
            [sys.executable, "-I", "-c", FRESH_PROCESS, str(saved), str(probe), str(result)],
            env={"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        found = load_file(result / "logits.safetensors")["logits"]
        torch.testing.assert_close(found, logits(model, input_ids=tokens()), atol=1e-5, rtol=1e-5)
        assert (result / WEIGHTS).read_bytes() == (saved / WEIGHTS).read_bytes()


class TestSequences:
    @pytest.fixture(scope="class")
    def model(self):
        return tiny_fsgpt()

    @pytest.fixture
    def padded(self):
        """Prompts of 9, 8, 7 and 6 tokens, padded on the left."""
        ids = tokens()
        mask = (torch.arange(9) >= torch.arange(4)[:, None]).long()
        return {"input_ids": ids.where(mask.bool(), 1), "attention_mask": mask}

    @pytest.mark.parametrize("beams", [1, 3])
    @pytest.mark.parametrize("masked", [True, False])
    def test_generation_with_a_cache_equals_that_without(self, model, padded, beams, masked):
        prompt = padded if masked else {"input_ids": tokens()}
        options = GREEDY | {"num_beams": beams}
        cached = model.generate(**prompt, use_cache=True, **options)
        assert torch.equal(cached, model.generate(**prompt, use_cache=False, **options))
        assert cached.shape == (4, 21)
        assert len(cached[:, 9:].unique()) > 4  # not one token over and over

    def test_generation_of_a_padded_prompt_is_that_of_the_prompt_alone(self, model, padded):
        together = model.generate(**padded, **GREEDY)
        alone = model.generate(tokens()[3:, 3:], **GREEDY)
        assert torch.equal(together[3:, 3:], alone)

    def test_parts_with_a_cache_give_the_logits_of_the_whole(self, model, padded):
        ids, mask = padded["input_ids"], padded["attention_mask"]
        with torch.no_grad():
            first = model(ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
            second = model(ids[:, 5:], attention_mask=mask, past_key_values=first.past_key_values)
        found = torch.cat([first.logits, second.logits], dim=1)
        torch.testing.assert_close(found, logits(model, **padded), atol=1e-4, rtol=1e-5)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("masked", [True, False])
    def test_padding_changes_nothing(self, model, side, masked):
        pads = torch.ones(4, 5, dtype=torch.long)
        ids = torch.cat([pads, tokens()] if side == "left" else [tokens(), pads], dim=1)
        mask = {"attention_mask": (ids != 1).long()} if masked else {}
        found = logits(model, input_ids=ids, **mask)
        found = found[:, 5:] if side == "left" else found[:, :-5]
        torch.testing.assert_close(found, logits(model, input_ids=tokens()), atol=1e-4, rtol=1e-5)

    def test_embeddings_instead_of_ids(self, model):
        embeds = model.get_input_embeddings()(tokens())
        found = logits(model, inputs_embeds=embeds, logits_to_keep=2)
        assert torch.equal(found, logits(model, input_ids=tokens())[:, -2:])
        with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
            model(input_ids=tokens(), inputs_embeds=embeds)

    def test_what_is_recorded(self, model):
        found = tiny_fsgpt(attn_implementation="eager")(
            tokens(), output_hidden_states=True, output_attentions=True, output_router_logits=True
        )
        assert [each.shape for each in found.router_logits] == [(36, EXPERTS)] * 2
        assert [each.shape for each in found.attentions] == [(4, 4, 9, 9)] * 4
        assert [each.shape for each in found.hidden_states] == [(4, 9, 32)] * 5
        assert model(tokens()).router_logits is None


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
