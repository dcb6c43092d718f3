import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mcsmoe.modeling.configuration_fsgpt_moe import FSGPTMoEConfig
from mcsmoe.modeling.modeling_fsgpt_moe import FSGPTMoEForCausalLM
from tests.modeling.fsgpt import BATCHES, EXPERTS, FSGPT, SPARSE, golden_batch, golden_model, logits, tiny_fsgpt, tokens
from tests.shared import needs_golden

WEIGHTS = "model.safetensors"


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
