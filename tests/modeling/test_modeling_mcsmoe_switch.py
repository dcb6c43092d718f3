import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from mcsmoe.families.experts import mapped_model
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration
from tests.modeling.linears import dense
from tests.models import EXPERTS, KEPT, batch, logits, tiny_compressed, tiny_merged, tiny_switch

MODELS: dict[str, Callable[..., Any]] = {
    "merged": tiny_merged,
    "row": tiny_compressed,
    "column": partial(tiny_compressed, "column"),
    "element": partial(tiny_compressed, "element"),
    "low-rank-only": partial(tiny_compressed, "none"),
    "sparse-only": partial(tiny_compressed, rank=0),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def spread(model):
    """The stock model that keeps a copy of the merged expert in every slot that maps to it."""
    stock = tiny_switch(expert_capacity=model.config.expert_capacity)
    state = model.state_dict()
    for name, mlp in model.sparse_mlps().items():
        stack, index = name.split(".")
        path = f"{stack}.block.{index}.layer.{'1' if stack == 'encoder' else '2'}.mlp"
        slots = state.pop(f"{path}.expert_map")
        for key in ("wi", "wo"):
            weight = dense(getattr(mlp.experts, key))
            for part in [part for part in state if part.startswith(f"{path}.experts.{key}.")]:
                del state[part]
            for expert, slot in enumerate(slots):
                state[f"{path}.experts.expert_{expert}.{key}.weight"] = weight[slot]
    stock.load_state_dict(state)
    return stock


@pytest.mark.parametrize("capacity", [1000, 3, 1])
def test_identity_map_gives_the_stock_logits_bit_by_bit(capacity):
    stock = tiny_switch(expert_capacity=capacity)
    labels = {"labels": batch()["decoder_input_ids"], "output_router_logits": True}
    with torch.no_grad():
        want, found = (each(**batch(), **labels) for each in (stock, mapped_model(stock)))
    assert torch.equal(want.logits, found.logits)
    assert torch.equal(want.loss, found.loss)
    assert len(found.encoder_router_logits) == len(found.decoder_router_logits) == 2
    assert torch.equal(want.decoder_router_logits[1], found.decoder_router_logits[1])


def test_identity_map_gives_the_stock_gradients():
    stock = tiny_switch(dropout_rate=0.0, router_jitter_noise=0.1).train()
    mapped = mapped_model(stock)
    for each in (stock, mapped):
        torch.manual_seed(5)
        each(input_ids=batch()["input_ids"], labels=batch()["decoder_input_ids"]).loss.backward()
    experts = stock.encoder.block[3].layer[1].mlp.experts
    for expert, found in enumerate(mapped.encoder.block[3].layer[1].mlp.experts.wi.weight.grad):
        want = experts[f"expert_{expert}"].wi.weight.grad  # None: not used in this batch
        assert torch.allclose(found, torch.zeros_like(found) if want is None else want, atol=1e-6)
    assert torch.allclose(stock.shared.weight.grad, mapped.shared.weight.grad, atol=1e-6)


@pytest.mark.parametrize("capacity", [1000, 2])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_merged_expert_serves_every_slot_that_maps_to_it(build, capacity):
    model = build(expert_capacity=capacity)
    assert torch.allclose(logits(model), logits(spread(model)), atol=1e-5)


def test_over_capacity_tokens_of_a_sequence_contribute_nothing():
    mlp = tiny_merged(expert_capacity=1).sparse_mlps()["encoder.1"]
    tokens = torch.randn(1, 1, 32).expand(2, 4, 32).contiguous()
    out = mlp(tokens)
    assert out[:, 0].abs().min() > 0
    assert torch.equal(out[:, 1:], torch.zeros(2, 3, 32))


def test_every_layer_has_its_own_number_of_experts():
    model = tiny_merged()
    assert {name: mlp.experts.num_experts for name, mlp in model.sparse_mlps().items()} == KEPT
    assert list(model.sparse_mlps()) == list(KEPT)


def test_a_merged_expert_runs_once():
    mlp = tiny_merged().sparse_mlps()["encoder.3"]
    calls = []
    mlp.experts.wi.register_forward_hook(lambda _, given, __: calls.append(given))
    mlp(torch.randn(3, 7, 32))
    ((tokens, sizes),) = calls
    assert len(sizes) == 3
    assert sum(sizes) == len(tokens) == 21


def test_generate_with_and_without_cache(model):
    source = {key: value for key, value in batch().items() if key != "decoder_input_ids"}
    cached = model.generate(**source, max_new_tokens=6, do_sample=False, use_cache=True)
    plain = model.generate(**source, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    assert model.generate(**source, max_new_tokens=4, num_beams=3).shape[0] == 5


def test_bfloat16(model):
    half = copy.deepcopy(model).to(torch.bfloat16)
    found = logits(half)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    for mlp in half.sparse_mlps().values():
        assert mlp.expert_map.dtype == torch.int64
        assert mlp.router.classifier.weight.dtype == torch.bfloat16
    wanted = mapped_model(tiny_switch().to(torch.bfloat16))
    assert torch.equal(logits(wanted), logits(tiny_switch().to(torch.bfloat16)))


def test_device_map_offload_to_disk(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    tied = ("shared", "lm_head", "encoder.embed_tokens", "decoder.embed_tokens")
    places = dict.fromkeys((*tied, "encoder.final_layer_norm", "decoder.final_layer_norm"), "cpu")
    offloaded = MCSMoESwitchForConditionalGeneration.from_pretrained(
        tmp_path / "saved",
        device_map=places | {"encoder.block": "disk", "decoder.block": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert offloaded.encoder.block[3].layer[1].mlp.router.classifier.weight.is_meta
    # Each use maps the weights from the file anew, at addresses that change the last bits.
    assert torch.allclose(logits(offloaded), logits(model), atol=1e-5)


def test_gradient_checkpointing(model):
    inputs = {"input_ids": batch()["input_ids"], "labels": batch()["decoder_input_ids"]}
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(4)
        model(**inputs, use_cache=False).loss.backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_save_pretrained_twice_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "first")
    again = MCSMoESwitchForConditionalGeneration.from_pretrained(tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    code = {f"{name}_mcsmoe.py" for name in ("aligned", "experts", "grouped", "linears", "sparse")}
    code |= {"configuration_mcsmoe_switch.py", "modeling_mcsmoe_switch.py"}
    assert {name for name in names if name.endswith(".py")} == code
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert torch.equal(logits(again), logits(model))


def test_reloaded_weights_lie_in_aligned_memory(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = MCSMoESwitchForConditionalGeneration.from_pretrained(tmp_path)
    assert all(value.data_ptr() % 64 == 0 for value in again.state_dict().values())
    assert again.lm_head.weight is again.shared.weight


def test_update_config_tells_what_the_modules_hold():
    for structure, rank in (("row", 4), ("column", 4), ("element", 0)):
        layers = tiny_compressed(structure, rank).config.to_dict()["moe_layers"]
        state = tiny_compressed(structure, rank).sparse_mlps()["encoder.3"].experts.state_dict()
        kept = {key: len(state[f"{key}.sparse.values"]) for key in ("wi", "wo")}
        assert layers["encoder.3"] == {"experts": 3, "rank": rank, "structure": structure, "kept": kept}
        assert layers["decoder.3"]["kept"] == {"wi": 0, "wo": 0}
    entry = {"experts": 3, "rank": 4, "structure": "none", "kept": {"wi": 0, "wo": 0}}
    assert tiny_compressed("none").config.to_dict()["moe_layers"]["encoder.3"] == entry
    merged = tiny_merged()
    merged.update_config()
    assert merged.config.to_dict()["moe_layers"]["encoder.1"] == {"experts": 1}


class TestExcludedExperts:
    """Those that the index map sends to −1."""

    MAP = torch.tensor([0, -1, 1, -1, -1, 2, 0, -1])
    TOKENS = torch.randn(5, 7, 32, generator=torch.Generator().manual_seed(0))

    @pytest.fixture
    def model(self):
        model = tiny_compressed()
        model.sparse_mlps()["encoder.3"].expert_map.copy_(self.MAP)
        return model

    @pytest.fixture
    def mlp(self, model):
        return model.sparse_mlps()["encoder.3"]

    def test_are_never_selected_and_the_others_share_their_probability(self, mlp):
        raw = self.TOKENS @ mlp.router.classifier.weight.T
        assert (self.MAP[raw.argmax(-1)] < 0).any()
        expert, gate, found = mlp.router(self.TOKENS, mlp.expert_map < 0)
        assert (self.MAP[expert] >= 0).all()
        left = raw.exp() * (self.MAP >= 0)
        want, best = (left / left.sum(-1, keepdim=True)).max(-1)
        assert torch.equal(expert, best)
        torch.testing.assert_close(gate[..., 0], want)
        assert (found == float("-inf")).sum() == self.TOKENS[..., 0].numel() * (self.MAP < 0).sum()

    def test_output_is_that_of_the_others_alone(self, mlp):
        stays = (self.MAP >= 0).nonzero()[:, 0]
        smaller = copy.deepcopy(mlp)
        smaller.expert_map = self.MAP[stays]
        smaller.router.num_experts = len(stays)
        smaller.router.classifier.weight = torch.nn.Parameter(mlp.router.classifier.weight[stays])
        torch.testing.assert_close(mlp(self.TOKENS), smaller(self.TOKENS))

    def test_survive_training_generation_and_saving(self, model, tmp_path):
        model.train()(input_ids=batch()["input_ids"], labels=batch()["decoder_input_ids"]).loss.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        router = model.sparse_mlps()["encoder.3"].router.classifier.weight.grad
        assert not router[self.MAP < 0].any()
        model.eval().generate(input_ids=batch()["input_ids"], max_new_tokens=3)
        model.save_pretrained(tmp_path)
        again = MCSMoESwitchForConditionalGeneration.from_pretrained(tmp_path)
        assert torch.equal(again.sparse_mlps()["encoder.3"].expert_map, self.MAP)
        assert torch.equal(logits(again), logits(model))


def test_excluded_experts_in_half_precision():
    mlp = tiny_merged().to(torch.bfloat16).sparse_mlps()["decoder.1"]
    mlp.expert_map.copy_(torch.arange(EXPERTS) - 4)
    expert, gate, _ = mlp.router(torch.randn(2, 9, 32).bfloat16(), mlp.expert_map < 0)
    assert expert.min() >= 4
    assert gate.isfinite().all()
