"""Every family with the common experts interface, taken through every step on a small random model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcsmoe.alignment.permute import weight_matches, write_permuted
from mcsmoe.calibration.gradients import Gradients, write_gradients
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.verify import check_inventory, verify_checkpoint
from mcsmoe.compression.factorise import factorise_model, sparse_parts
from mcsmoe.families import MoELayer, family_of
from mcsmoe.families.experts import expert_in_memory, read_expert
from mcsmoe.model_types import FUSED
from mcsmoe.modeling import experts_mcsmoe
from mcsmoe.modeling.experts_mcsmoe import pairs
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from tests.compression.settings import compress
from tests.families.models import EXPERTS, SETTINGS, batch, refused, small_model, table
from tests.families.planted import GROUPS, Made, logits, merge, plant, save

REMOTE = ["dbrx", "deepseek_v3", "fsgpt_moe", "gpt_oss", "llama4_text", "mixtral", "nemotron_h"]
"""Families that are also loaded by remote code in a fresh process: one of each kind."""
OWN = "llama4_text"
"""The one of them that gets a new interpreter, which takes seconds: it has files of remote code of its own."""


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
    if model_type == OWN:
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


@torch.no_grad()
def test_one_token_and_the_order_of_few_tokens(merged: Any, monkeypatch: pytest.MonkeyPatch):
    """Python sorts few selections as tensor operations sort many; one token, here with the same expert twice, is summed
    up without them."""
    experts = merged.sparse_mlps()["decoder.0"].experts
    tokens = torch.randn(9, experts.up.weight.shape[2], generator=torch.Generator().manual_seed(0))
    index, weights = torch.tensor([[1, 1], [1, 0], [0, 1]] * 3), torch.rand(9, 2)
    few = pairs(index, 3)
    want = experts(tokens, index, weights)
    torch.testing.assert_close(experts(tokens[:1], index[:1], weights[:1]), want[:1])
    monkeypatch.setattr(experts_mcsmoe, "FEW", 0)
    many = pairs(index, 3)
    assert all(torch.equal(a, b) for a, b in zip(few[:2], many[:2]))
    assert few[2] == many[2] == [6, 9, 0]
    assert torch.equal(experts(tokens, index, weights), want)


@torch.no_grad()
def test_last_positions_come_to_the_head_in_one_piece(merged: Any):
    """Otherwise torch multiplies them by a copy of the head's weight for each sequence."""
    shapes: list[tuple[Any, bool]] = []
    merged.lm_head.register_forward_hook(lambda head, x, y: shapes.append((x[0].shape[:2], x[0].is_contiguous())))
    last = merged(**batch(), logits_to_keep=1).logits
    assert shapes == [((3, 1), True)]
    torch.testing.assert_close(last, merged(**batch()).logits[:, -1:])


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
