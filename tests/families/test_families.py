"""Every family with the common experts interface, taken through every step on a small random model."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mcsmoe.alignment.permute import weight_matches, write_permuted
from mcsmoe.calibration.collect import collect
from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.calibration.watch import watch, watching
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.verify import check_inventory, verify_checkpoint
from mcsmoe.compression.factorise import factorise_model, sparse_parts
from mcsmoe.families import MoELayer, Routing, family_of
from mcsmoe.families.experts import expert_in_memory, forward, read_expert
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import write_merged
from mcsmoe.model_types import FUSED
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from tests.compression.settings import compress
from tests.families.models import EXPERTS, SETTINGS, batch, refused, small_model, table
from tests.merging.material import nothing_measured

GROUPS = EXPERTS // 2
"""Experts e and EXPERTS − 1 − e are planted as one expert with its hidden neurons in another order.

No other pairing would do as well: e and e + GROUPS is what an index map says before a checkpoint fills it.
"""
REMOTE = ["dbrx", "deepseek_v3", "fsgpt_moe", "gpt_oss", "llama4_text", "mixtral", "nemotron_h"]
"""Families that are also loaded by remote code in a fresh process: one of each kind."""
OWN = ("fsgpt_moe", "llama4_text", "mixtral")
"""Those of them that get a process of their own, which takes seconds: their files of remote code differ."""


class Made(NamedTuple):
    model: Any
    layers: list[MoELayer]
    checkpoint: Checkpoint


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        value: Tensor = model(**batch()).logits
    return value


def save(model: Any, directory: Path) -> Made:
    model.save_pretrained(directory)
    return Made(model, family_of(model.config).layers(model.config), Checkpoint(directory))


@pytest.fixture(params=SETTINGS)
def stock(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return save(small_model(request.param), tmp_path / "stock")


def plant(model: Any) -> None:
    """Make the twin of expert e compute what e computes, by neurons in another order."""
    generator = torch.Generator().manual_seed(7)
    for layer in family_of(model.config).layers(model.config):
        for e in range(GROUPS):
            order = torch.randperm(layer.d_ff, generator=generator)
            twin = expert_in_memory(model, layer, EXPERTS - 1 - e)
            for name, value in expert_in_memory(model, layer, e).items():
                axis = layer.layout[name].hidden_axis
                twin[name].data.copy_(value.data if axis is None else value.data.index_select(axis, order))


def plan_of(layers: list[MoELayer]) -> Plan:
    groups = tuple(Group(e, (e, EXPERTS - 1 - e), (0.3, 0.1)) for e in range(GROUPS))
    return Plan(
        "planted", "frequency", "weight", "dominant", {layer.name: LayerPlan(groups, merged=True) for layer in layers}
    )


def merge(made: Made, directory: Path) -> Checkpoint:
    directory.mkdir()
    write_merged(made.checkpoint, plan_of(made.layers), nothing_measured(made.layers), directory)
    return Checkpoint(directory)


def test_a_checkpoint_has_what_the_model_has_in_memory(stock: Made):
    assert stock.layers
    for layer in stock.layers:
        assert layer.experts == EXPERTS
        router = stock.model.get_submodule(layer.router_path)
        assert any(torch.equal(stock.checkpoint.tensor(layer.router_weight), p) for p in router.parameters())
        for e in range(EXPERTS):
            on_disk, in_memory = (read_expert(stock.checkpoint, layer, e), expert_in_memory(stock.model, layer, e))
            assert {name: value.shape for name, value in on_disk.items()} == layer.shapes()
            assert all(torch.equal(on_disk[name], in_memory[name]) for name in layer.layout)


def test_permuting_leaves_the_function(stock: Made, tmp_path: Path):
    def orders(layer: MoELayer) -> dict[int, Tensor]:
        return {e: match.perm for e, match in weight_matches(stock.checkpoint, layer, 2).items()}

    (tmp_path / "permuted").mkdir()
    write_permuted(stock.checkpoint, stock.layers, orders, tmp_path / "permuted")
    permuted = Checkpoint(tmp_path / "permuted")
    assert permuted.names() == stock.checkpoint.names()
    assert not torch.equal(stock.layers[0].read(permuted, 0, "up"), stock.layers[0].read(stock.checkpoint, 0, "up"))
    found = logits(load_model(tmp_path / "permuted"))
    torch.testing.assert_close(found, logits(stock.model), rtol=0, atol=1e-5)


def test_counts_are_those_of_the_router_written_out(stock: Made):
    seen: dict[str, Tensor] = {}
    for layer in stock.layers:
        hook = keep_input(seen, layer.name)
        stock.model.get_submodule(layer.router_path).register_forward_pre_hook(hook)
    logits(stock.model)
    real = batch()["attention_mask"].bool().flatten()
    rows = batch() | {"labels": batch()["input_ids"]}
    statistics = collect(stock.model, family_of(stock.model.config), stock.layers, [rows])
    for layer in stock.layers:
        x = seen[layer.name].flatten(0, -2)[real]
        selected = select_by_hand(stock.model, layer, x)
        counts = torch.bincount(selected.flatten(), minlength=EXPERTS)
        assert statistics[layer.name].tokens == real.sum()
        assert torch.equal(statistics[layer.name].counts, counts.to(statistics[layer.name].counts.dtype))


def test_experts_of_llama4_see_tokens_times_their_scores():
    model = small_model("llama4_text", num_experts_per_tok=1)
    (layer,) = family_of(model.config).layers(model.config)
    outputs: list[Tensor] = []
    experts = model.get_submodule(layer.experts_path)
    with_hook = experts.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits(model)
    with_hook.remove()
    real = batch()["attention_mask"].bool().flatten()
    computed = outputs[0].view(EXPERTS, len(real), -1)[:, real]  # [E, T, d]; of others' tokens all are 0
    rows = batch() | {"labels": batch()["input_ids"]}
    found = collect(model, family_of(model.config), [layer], [rows], also=["norms"])[layer.name]
    assert found.norms is not None
    torch.testing.assert_close(found.norms, computed.double().norm(dim=-1).sum(1), rtol=0, atol=1e-6)
    assert torch.equal(found.gates, found.counts.double())


def test_outputs_that_the_model_computes_are_those_of_its_weights(stock: Made):
    rows, inputs = batch() | {"labels": batch()["input_ids"]}, []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        assert routing.outputs is not None
        inputs.append(x)
        # Llama 4's further choices see tokens times other scores than those that `Routing` has.
        index = routing.index if routing.scale is None else routing.index[:, :1]
        for e in range(EXPERTS):
            token, choice = torch.where(index == e)
            expected = forward(expert_in_memory(stock.model, layer, e), layer.layout, layer.activation, x[token])
            torch.testing.assert_close(routing.outputs[token, choice], expected, rtol=1e-4, atol=1e-6)

    family = family_of(stock.model.config)
    for _ in watching(stock.model, family, stock.layers, [rows], see, outputs=True):
        pass
    # What comes out of the experts goes on as it would have.
    plain: list[Tensor] = []
    watch(stock.model, family, stock.layers, [rows], lambda layer, x, routing: plain.append(x))
    for ours, theirs in zip(inputs, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def keep_input(seen: dict[str, Tensor], name: str) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
        seen[name] = inputs[0].detach()

    return hook


def select_by_hand(model: Any, layer: MoELayer, x: Tensor) -> Tensor:
    """Experts [T, k] of tokens x [T, d]: the largest scores, corrected by a bias and limited to groups where
    the family does so."""
    config, block = model.config, model.get_submodule(layer.path)
    router = model.get_submodule(layer.router_path)
    weight = next(value for value in router.parameters() if value.ndim == 2)
    bias = getattr(router, "bias", None)
    scores = x @ weight.T if bias is None else x @ weight.T + bias
    vectors = [value for value in [*block.buffers(), *block.parameters()] if value.shape == (EXPERTS,)]
    correction = [value for value in vectors if value is not bias]
    if config.model_type == "deepseek_v2":
        return grouped(scores.softmax(-1), config, 1).topk(layer.top_k).indices
    if config.model_type == "ernie4_5_moe":
        correction = [value for value in block.parameters() if value.shape == (1, EXPERTS)]
        scores = scores.softmax(-1) + correction[0]
    elif config.model_type == "kolibri1":
        scores = scores + correction[0]
    elif correction:
        scores = grouped(scores.sigmoid() + correction[0], config, 2)
    return scores.topk(layer.top_k).indices


def grouped(scores: Tensor, config: Any, largest: int) -> Tensor:
    """Scores [T, E], −∞ outside the `topk_group` groups in which the sum of the `largest` scores is largest."""
    count, kept = getattr(config, "n_group", 1) or 1, getattr(config, "topk_group", 1) or 1
    groups = scores.view(len(scores), count, -1)
    best = groups.topk(min(largest, groups.shape[-1])).values.sum(-1).topk(kept).indices
    inside = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, True)
    return groups.masked_fill(~inside[..., None], float("-inf")).flatten(1)


def test_planted_duplicates_merge_without_loss_and_reload(stock: Made, tmp_path: Path):
    plant(stock.model)
    planted = save(stock.model, tmp_path / "planted")
    merged = merge(planted, tmp_path / "merged")
    check_inventory(merged, {})
    assert merged.size_bytes < planted.checkpoint.size_bytes
    model = load_model(tmp_path / "merged")
    assert {name: mlp.experts.num_experts for name, mlp in model.sparse_mlps().items()} == {
        layer.name: GROUPS for layer in planted.layers
    }
    torch.testing.assert_close(logits(model), logits(planted.model), rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = Checkpoint(tmp_path / "again")
    assert again.names() == merged.names()
    assert all(torch.equal(again.tensor(name), merged.tensor(name)) for name in merged.names())
    assert torch.equal(logits(load_model(tmp_path / "again")), logits(model))


def test_wrong_twins_do_change_the_output(stock: Made, tmp_path: Path):
    """So that the test above can fail: without planting, the same merge is no identity."""
    merge(stock, tmp_path / "merged")
    assert (logits(load_model(tmp_path / "merged")) - logits(stock.model)).abs().max() > 1e-4


def test_compressed_experts_reload_bit_equal(stock: Made, tmp_path: Path):
    merge(stock, tmp_path / "merged")
    model = load_model(tmp_path / "merged")
    before = logits(model)
    factorise_model(model, compress(rank=2, final_ratio=0.25), FactorisedLinears.from_factors)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    generator = torch.Generator().manual_seed(3)
    for part in sparse_parts(model).values():
        part.keep(torch.rand(len(part.values), generator=generator) < 0.25)
    model.update_config()
    small = save_compressed(model, tmp_path / "compressed")
    assert small.size_bytes < Checkpoint(tmp_path / "merged").size_bytes
    reloaded = load_model(tmp_path / "compressed")
    assert torch.equal(logits(reloaded), logits(model))
    assert reloaded.config.moe_layers == model.config.moe_layers


def save_compressed(model: Any, directory: Path) -> Checkpoint:
    model.save_pretrained(directory)
    return Checkpoint(directory)


@pytest.mark.parametrize("model_type", REMOTE)
def test_remote_code_in_a_fresh_process(model_type: str, tmp_path: Path, request: pytest.FixtureRequest):
    if model_type in OWN:
        request.getfixturevalue("own_process")
    made = save(small_model(model_type), tmp_path / "stock")
    merge(made, tmp_path / "merged")
    verify_checkpoint(tmp_path / "merged", {}, batch(), logits(load_model(tmp_path / "merged")))


@pytest.fixture
def merged(tmp_path: Path) -> Any:
    """A merged Mixtral."""
    made = save(small_model("mixtral"), tmp_path / "stock")
    merge(made, tmp_path / "merged")
    return load_model(tmp_path / "merged")


def test_generation_copies_and_lower_precision(merged: Any):
    twin = copy.deepcopy(merged)
    options = {"max_new_tokens": 5, "do_sample": False, "input_ids": batch()["input_ids"][1:]}
    assert torch.equal(merged.generate(**options), twin.generate(**options, use_cache=False))
    recorded = merged(**batch(), output_router_logits=True).router_logits
    assert [tuple(each.shape) for each in recorded] == [(30, EXPERTS)] * 2
    assert merged.to(torch.bfloat16)(**batch()).logits.dtype == torch.bfloat16


def test_a_merged_expert_runs_once_for_a_token_that_selects_it_twice(merged: Any):
    mlp = merged.sparse_mlps()["decoder.0"]
    mlp.gate.expert_map.zero_()
    sizes: list[int] = []
    mlp.experts.up.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    logits(merged)
    assert sizes == [30]


def test_offload_to_disk(merged: Any, tmp_path: Path):
    expected = logits(merged)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    offloaded = type(merged).from_pretrained(
        tmp_path / "merged", device_map=places | {"model.layers": "disk"}, offload_folder=tmp_path / "offload"
    )
    torch.testing.assert_close(logits(offloaded), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["dbrx", "mixtral", "gpt_oss"])
def test_gradients_of_experts_that_share_a_tensor(model_type: str, tmp_path: Path):
    model = small_model(model_type)
    layers = family_of(model.config).layers(model.config)
    ids = batch()["input_ids"][1:]
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.roll(-1, 1)}
    write_gradients(tmp_path, model, layers, [rows], ["gradients"])
    scores = model(input_ids=ids).logits.log_softmax(-1)
    (-scores.gather(2, rows["labels"][..., None]).sum()).backward()
    found = Gradients(tmp_path)
    for layer in layers:
        for e in range(EXPERTS):
            for name, value in found.read("gradient", layer, e).items():
                place = layer.in_memory[name]
                expected = place.view(place.share(model.get_parameter(place.name(e)).grad, e))
                torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_every_family_is_tested_and_stands_in_the_readme():
    assert set(SETTINGS) == {"dbrx", "fsgpt_moe", "llama4_text", *FUSED}
    root = Path(__file__).parent.parent.parent
    assert table() in (root / "README.md").read_text()
    assert refused() in (root / "docs/families.md").read_text()
