"""Every family as a stock checkpoint with K experts a layer, on a small random model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.older import for_older_programs
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.verify import check_inventory
from mcsmoe.errors import CheckpointError
from mcsmoe.exporting.stock import check_stock, write_stock
from mcsmoe.families import family_of
from mcsmoe.families.experts import read_expert
from mcsmoe.grouping.plan import Group, LayerPlan
from mcsmoe.grouping.policies import POLICIES
from tests.exporting.models import DOMINANTS, EXPERTS, KEPT, SWITCH, Merged, export, in_pairs, logits, merge, small
from tests.families.models import SETTINGS
from tests.families.planted import plant


def load(directory: Path, like: Any) -> Any:
    """By the stock class, which must find everything and nothing else."""
    auto_class = getattr(transformers, family_of(like.config).auto_class)
    model, report = auto_class.from_pretrained(directory, local_files_only=True, output_loading_info=True)
    assert not any(report.values()), report
    assert type(model) is type(like)
    return model.eval()


def cut(model: Any, directory: Path) -> Any:
    """The stock class with K experts, given the dominant experts and their router rows by hand."""
    with torch.device("meta"):
        auto_class = getattr(transformers, family_of(model.config).auto_class)
        kept = auto_class.from_config(transformers.AutoConfig.from_pretrained(directory))
    state = {}
    for name, value in kept.state_dict().items():
        number = re.search(r"(?<=\.expert_)\d+", name)  # Switch has a module for each
        whole = model.state_dict()[
            name[: number.start()] + f"{DOMINANTS[int(number[0])]}" + name[number.end() :] if number else name
        ]
        for axis, (size, other) in enumerate(zip(value.shape, whole.shape)):
            if size != other:
                # DBRX has the rows of one expert after another along this axis.
                whole = whole.unflatten(axis, (EXPERTS, -1)).index_select(axis, DOMINANTS).flatten(axis, axis + 1)
        state[name] = whole
    kept.load_state_dict(state, assign=True)
    # Buffers that are not saved.
    held = dict(model.named_buffers())
    for name, value in kept.named_buffers():
        if value.is_meta:
            owner, _, own = name.rpartition(".")
            setattr(kept.get_submodule(owner), own, held[name])
    kept.tie_weights()
    return kept.eval()


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """What is in an object of an object, by "outer.inner"."""
    nested = {key: value for key, value in values.items() if isinstance(value, dict)}
    inner = {f"{key}.{name}": each for key, value in nested.items() for name, each in value.items()}
    return {key: value for key, value in values.items() if key not in nested} | inner


@pytest.fixture(params=[*SETTINGS, SWITCH])
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> Merged:
    """Experts that become one were one, with their hidden neurons in another order."""
    model = small(request.param)
    plant(model)
    return merge(model, tmp_path)


def test_a_stock_model_with_the_dominant_router_rows(planted: Merged, tmp_path: Path):
    mapped = planted.mapped
    agreement = export(planted, tmp_path / "stock")
    stock = Checkpoint(tmp_path / "stock")
    check_inventory(stock, {})
    axes = mapped.family.expert_axes(mapped.source.config)
    assert set(mapped.others) == {name for name in stock.names() if name in mapped.others}
    for tensor, name in mapped.others.items():
        value = mapped.checkpoint.tensor(name)
        assert stock.tensor(tensor).equal(value.index_select(axes[name], DOMINANTS) if name in axes else value)
    assert all(any(name.startswith(layer.path) for name in axes) for layer in mapped.layers)
    for layer in family_of(stock.config).layers(stock.config):
        assert layer.experts == KEPT
        for k in range(KEPT):
            for name, value in read_expert(stock, layer, k).items():
                assert value.equal(mapped.checkpoint.part(mapped.family.merged_tensor(layer, name), k))
    assert set(agreement) == {layer.name for layer in mapped.layers}
    torch.testing.assert_close(
        logits(load(tmp_path / "stock", planted.model)),
        logits(cut(planted.model, tmp_path / "stock")),
        rtol=0,
        atol=1e-5,
    )
    before, after = (
        json.loads((path / "config.json").read_text()) for path in (mapped.source.directory, stock.directory)
    )
    (count,) = (name for name in mapped.family.expert_counts if name in flat(before))
    older = {mapped.family.older_count: KEPT} if mapped.family.older_count else {}
    assert flat(after) == flat(for_older_programs(before, {})) | {count: KEPT} | older


@pytest.mark.parametrize("model_type", [*SETTINGS, SWITCH])
def test_rows_can_be_fitted(model_type: str, tmp_path: Path):
    """That is, logits are tokens times rows."""
    merged = merge(small(model_type), tmp_path)
    agreement = export(merged, tmp_path / "stock", "ridge")
    assert all(0 <= share <= 1 for share in agreement.values())
    check_inventory(Checkpoint(tmp_path / "stock"), {})


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", SWITCH])
def test_equal_rows_of_a_group_agree(model_type: str, tmp_path: Path):
    model = small(model_type)
    for layer in family_of(model.config).layers(model.config):
        for value in model.get_submodule(layer.router_path).parameters():
            value.data[KEPT:] = value.data[:KEPT].flip(0)
    merged = merge(model, tmp_path)
    for rule in ("dominant", "ridge", "cross-entropy"):
        shares = export(merged, tmp_path / rule, rule).values()
        # A second expert that is selected beside the first takes some of its gate.
        assert all(share == 1 if merged.mapped.layers[0].top_k == 1 else 0 < share < 1 for share in shares)


def test_biases_of_a_router_are_fitted_with_its_rows(tmp_path: Path):
    model = small(SWITCH, router_bias=True)
    for layer in family_of(model.config).layers(model.config):
        model.get_submodule(layer.router_path).classifier.bias.data = torch.arange(float(EXPERTS))
    merged = merge(model, tmp_path)
    bias = f"{merged.mapped.layers[0].router_path}.classifier.bias"
    for rule in ("dominant", "cross-entropy"):
        export(merged, tmp_path / rule, rule)
        fitted = load(tmp_path / rule, model).get_parameter(bias)
        assert fitted.equal(DOMINANTS.float()) == (rule == "dominant")


def test_pruned_experts_that_the_router_left_out_change_nothing(tmp_path: Path):
    """Without members but the dominant one, K rows are what the index map did."""
    merged = merge(small(SWITCH), tmp_path, lambda layer: POLICIES["exclude"](in_pairs(layer)))
    assert set(export(merged, tmp_path / "stock").values()) == {1.0}
    exact = logits(load_model(tmp_path / "merged"))
    torch.testing.assert_close(logits(load(tmp_path / "stock", merged.model)), exact, rtol=0, atol=1e-5)


GROUP_LIMITED = [
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "exaone_moe",
    "glm4_moe",
    "glm4_moe_lite",
    "mimo_v2_flash",
    "nemotron_h",
]


@pytest.mark.parametrize("model_type", [*GROUP_LIMITED, "solar_open"])
def test_each_routing_group_keeps_its_experts(model_type: str, tmp_path: Path):
    """Experts 2i and 2i + 1 become one; the plan lists them by their use, so that routing groups alternate."""
    model = small(model_type, n_group=2, topk_group=1, num_experts_per_tok=2)
    pairs = tuple(Group(e, (e, e + 1), (0.3, 0.1)) for e in (6, 0, 4, 2))
    merged = merge(model, tmp_path, lambda layer: LayerPlan(pairs, merged=True))
    check_stock(merged.mapped)
    export(merged, tmp_path / "stock")
    stock = Checkpoint(tmp_path / "stock")
    for layer in family_of(stock.config).layers(stock.config):
        rows = merged.mapped.source.tensor(layer.router_weight)[[0, 2, 6, 4]]
        assert stock.tensor(layer.router_weight).equal(rows)
        for slot, k in enumerate((1, 3, 0, 2)):
            for name, value in read_expert(stock, layer, slot).items():
                held = merged.mapped.checkpoint.part(merged.mapped.family.merged_tensor(layer, name), k)
                assert value.equal(held)


def test_agreement_counts_the_limit_to_routing_groups(tmp_path: Path):
    """Experts that become one are copies, so only the limit makes the stock router select others."""
    model = small("dots1", n_group=2, topk_group=1, num_experts_per_tok=2)
    (layer,) = family_of(model.config).layers(model.config)
    weight = model.get_submodule(layer.router_path).weight.data
    weight[KEPT:] = weight[:KEPT].flip(0)  # both routing groups have the same rows
    (share,) = export(merge(model, tmp_path), tmp_path / "stock").values()
    assert share < 0.9


def test_nothing_merged_gives_the_source_back(tmp_path: Path):
    merged = merge(small("granitemoe"), tmp_path, lambda layer: LayerPlan.untouched(torch.ones(EXPERTS) / EXPERTS))
    export(merged, tmp_path / "stock")
    name = "generation_config.json"
    assert (tmp_path / "stock" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    stock, source = Checkpoint(tmp_path / "stock"), merged.mapped.source
    assert stock.config == for_older_programs(source.config, {})
    assert stock.names() == source.names()
    assert all(stock.tensor(name).equal(source.tensor(name)) for name in source.names())


def test_values_that_are_not_finite_leave_no_file(tmp_path: Path):
    merged = merge(small("mixtral"), tmp_path)
    routers = {
        name: torch.full((KEPT, 32), torch.nan) for name in merged.mapped.family.expert_axes(merged.model.config)
    }
    (tmp_path / "stock").mkdir()
    with pytest.raises(CheckpointError, match="NaN"):
        write_stock(merged.mapped, routers, tmp_path / "stock")
    assert not (tmp_path / "stock" / WEIGHTS).exists()


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", SWITCH])
def test_no_stack_of_experts_is_read_whole(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    merged = merge(small(model_type), tmp_path)
    mapped, read = merged.mapped, Checkpoint.tensor
    stacks = {mapped.family.merged_tensor(layer, name) for layer in mapped.layers for name in layer.layout}
    asked: set[str] = set()

    def tensor(self: Checkpoint, name: str) -> torch.Tensor:
        asked.add(name)
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    export(merged, tmp_path / "stock")
    assert asked
    assert not asked & stacks
