import copy

import pytest
import torch
from torch.nn import functional as F

from mcsmoe.architectures.mapped import mapped_model
from mcsmoe.modeling import MCSMoESwitchForConditionalGeneration
from mcsmoe.modeling.modeling_mcsmoe_switch import FactorisedLinears, StackedLinears
from tests.models import KEPT, batch, logits, tiny_compressed, tiny_merged, tiny_switch

MODELS = {"merged": tiny_merged, "compressed": tiny_compressed}


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


def dense(linears):
    if isinstance(linears, StackedLinears):
        return linears.weight.detach()
    weight = (linears.u @ linears.v).detach()
    return weight.index_put((linears.row_expert(), linears.row_index), linears.rows.detach(), accumulate=True)


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
    assert {"configuration_mcsmoe_switch.py", "modeling_mcsmoe_switch.py"} < set(names)
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert torch.equal(logits(again), logits(model))


def test_factorised_equals_dense_while_all_rows_are_kept():
    torch.manual_seed(0)
    weight, tokens = torch.randn(3, 10, 6), torch.randn(8, 6)
    u, v = torch.randn(3, 10, 2), torch.randn(3, 2, 6)
    linears = FactorisedLinears.from_factors(u, v, weight - u @ v)
    want = torch.cat([F.linear(part, matrix) for part, matrix in zip(tokens.split([5, 0, 3]), weight)])
    assert torch.allclose(linears(tokens, [5, 0, 3]), want, atol=1e-5)


def test_reloaded_weights_lie_in_aligned_memory(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = MCSMoESwitchForConditionalGeneration.from_pretrained(tmp_path)
    assert all(value.data_ptr() % 64 == 0 for value in again.state_dict().values())
    assert again.lm_head.weight is again.shared.weight


def test_keep_rows_drops_the_others_for_good():
    torch.manual_seed(0)
    u, v, s, tokens = torch.randn(3, 10, 2), torch.randn(3, 2, 6), torch.randn(3, 10, 6), torch.randn(8, 6)
    linears = FactorisedLinears.from_factors(u, v, s.clone())
    first, second = torch.rand(3, 10) < 0.7, torch.rand(3, 10) < 0.7
    linears.keep_rows(first)
    linears.keep_rows(second)  # rows that are gone do not come back
    kept = first & second
    assert len(linears.rows) == kept.sum()
    assert torch.equal(linears.row_ptr.diff(), kept.sum(1))
    assert torch.equal(linears.rows, s[kept])
    assert torch.equal(linears.row_index, kept.nonzero()[:, 1])
    weight = u @ v + s * kept[..., None]
    want = torch.cat([F.linear(part, matrix) for part, matrix in zip(tokens.split([5, 0, 3]), weight)])
    assert torch.allclose(linears(tokens, [5, 0, 3]), want, atol=1e-5)


def test_update_config_tells_what_the_modules_hold():
    layers = tiny_compressed().config.to_dict()["moe_layers"]
    state = tiny_compressed().sparse_mlps()["encoder.3"].experts.state_dict()
    rows = {"wi": len(state["wi.rows"]), "wo": len(state["wo.rows"])}
    assert layers["encoder.3"] == {"experts": 3, "rank": 4, "rows": rows}
    assert layers["decoder.3"]["rows"] == {"wi": 0, "wo": 0}
    dense = tiny_merged()
    dense.update_config()
    assert dense.config.to_dict()["moe_layers"]["encoder.1"] == {
        "experts": 1,
        "rank": 0,
        "rows": {"wi": 0, "wo": 0},
    }
