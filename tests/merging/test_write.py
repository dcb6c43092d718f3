"""A plan applied to a checkpoint: what is on disk, what it computes, and how much memory it takes."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.alignment.matching import align
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.errors import CheckpointError
from mcsmoe.families import family_of
from mcsmoe.families.experts import read_expert
from mcsmoe.grouping.plan import Group, LayerPlan, Plan
from mcsmoe.merging.apply import Material, write_merged
from tests.golden_switch import (
    SWITCH,
    golden_batch,
    golden_checkpoint,
    golden_groupings,
    golden_layers,
    golden_statistics,
)
from tests.merging.material import nothing_measured
from tests.models import EXPERTS, logits, tiny_switch
from tests.shared import needs_golden

ROOT = Path(__file__).parent.parent.parent
USE = torch.arange(EXPERTS, dtype=torch.float64) / 28


@pytest.fixture
def stock(tmp_path: Path) -> Checkpoint:
    tiny_switch().save_pretrained(tmp_path / "stock")
    return Checkpoint(tmp_path / "stock")


def layer_plan(labels: Sequence[int]) -> LayerPlan:
    groups = []
    for k in range(max(labels) + 1):
        members = tuple(e for e, label in enumerate(labels) if label == k)
        groups.append(Group(members[-1], members, tuple(float(USE[e]) for e in members)))
    return LayerPlan(tuple(groups), merged=True)


def plan_of(checkpoint: Checkpoint, layers: Mapping[str, Sequence[int]], **how: str) -> Plan:
    """Groups by label in the named layers; the others are left alone."""
    options: dict[str, Any] = {"rule": "frequency", "alignment": "weight", "reference": "dominant"} | how
    names = [layer.name for layer in family_of(checkpoint.config).layers(checkpoint.config)]
    plans = {n: layer_plan(layers[n]) if n in layers else LayerPlan.untouched(USE) for n in names}
    return Plan("test", layers=plans, **options)


def material(source: Checkpoint) -> Material:
    return nothing_measured(family_of(source.config).layers(source.config))


def written(source: Checkpoint, plan: Plan, directory: Path) -> Checkpoint:
    directory.mkdir()
    write_merged(source, plan, material(source), directory)
    return Checkpoint(directory)


GROUPS = {"encoder.1": [0, 1, 0, 2, 1, 0, 2, 1], "decoder.3": [0] * EXPERTS}


def test_the_file_holds_only_the_merged_experts(stock: Checkpoint, tmp_path: Path):
    merged = written(stock, plan_of(stock, GROUPS), tmp_path / "merged")
    kept = {"encoder.1": 3, "encoder.3": EXPERTS, "decoder.1": EXPERTS, "decoder.3": 1}
    family = family_of(stock.config)
    for layer in family.layers(stock.config):
        assert merged.shape(family.merged_tensor(layer, "wi"))[0] == kept[layer.name]
        assert merged.shape(family.merged_tensor(layer, "wo"))[0] == kept[layer.name]
    assert not any("expert_0" in name for name in merged.names())
    expert = 2 * 32 * 48 * 4
    assert stock.size_bytes - merged.size_bytes > (5 + 7) * expert - 4096
    assert Plan.load(tmp_path / "merged") == plan_of(stock, GROUPS)


def test_values_and_maps(stock: Checkpoint, tmp_path: Path):
    merged = written(stock, plan_of(stock, GROUPS), tmp_path / "merged")
    family = family_of(stock.config)
    layers = {layer.name: layer for layer in family.layers(stock.config)}
    layer = layers["encoder.1"]
    assert merged.tensor(family.merged_map(layer)).tolist() == GROUPS["encoder.1"]
    experts = [read_expert(stock, layer, e) for e in range(EXPERTS)]
    aligned = {e: align(experts[e], experts[7], layer.layout) for e in (1, 4)} | {7: experts[7]}
    for name in ("wi", "wo"):
        expected = sum(USE[e] * aligned[e][name].double() for e in aligned) / USE[[1, 4, 7]].sum()
        found = merged.tensor(family.merged_tensor(layer, name))[1]
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_layers_left_alone_are_bit_identical_also_after_reload(stock: Checkpoint, tmp_path: Path):
    merged = written(stock, plan_of(stock, GROUPS), tmp_path / "merged")
    family = family_of(stock.config)
    reloaded = load_model(tmp_path / "merged").state_dict()
    for layer in family.layers(stock.config):
        if layer.name in GROUPS:
            continue
        assert reloaded[family.merged_map(layer)].tolist() == list(range(EXPERTS))
        for name in layer.layout:
            stack = torch.stack([stock.tensor(layer.places[name].name(e)) for e in range(EXPERTS)])
            assert torch.equal(reloaded[family.merged_tensor(layer, name)], stack)
    for name in set(stock.names()) & set(merged.names()):
        assert torch.equal(stock.tensor(name), merged.tensor(name))


def test_merging_nothing_changes_no_logit(stock: Checkpoint, tmp_path: Path):
    written(stock, plan_of(stock, {}), tmp_path / "merged")
    assert torch.equal(logits(load_model(tmp_path / "merged")), logits(load_model(stock.directory)))


def test_merging_permuted_copies_changes_logits_by_rounding_only(tmp_path: Path):
    model = tiny_switch()
    generator = torch.Generator().manual_seed(4)
    mlp = model.encoder.block[1].layer[-1].mlp
    with torch.no_grad():
        for e in range(1, EXPERTS):
            perm = torch.randperm(48, generator=generator)
            mlp.experts[f"expert_{e}"].wi.weight.copy_(mlp.experts["expert_0"].wi.weight[perm])
            mlp.experts[f"expert_{e}"].wo.weight.copy_(mlp.experts["expert_0"].wo.weight[:, perm])
    model.save_pretrained(tmp_path / "stock")
    stock = Checkpoint(tmp_path / "stock")
    expected, one = logits(model), {"encoder.1": [0] * EXPERTS}
    for reference in ("dominant", "first"):
        merged = tmp_path / reference
        written(stock, plan_of(stock, one, reference=reference), merged)
        torch.testing.assert_close(logits(load_model(merged)), expected, rtol=1e-5, atol=1e-4)
    written(stock, plan_of(stock, one, alignment="none"), tmp_path / "unaligned")
    assert (logits(load_model(tmp_path / "unaligned")) - expected).abs().max() > 1e-2


def test_the_same_plan_gives_the_same_bytes(stock: Checkpoint, tmp_path: Path):
    plan = plan_of(stock, GROUPS)
    for name in ("a", "b"):
        written(stock, plan, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_tokenizer_and_generation_settings_travel(stock: Checkpoint, tmp_path: Path):
    (stock.directory / "tokenizer.json").write_text("{}")
    (stock.directory / "model.safetensors.index.json").write_text("{}")
    written(stock, plan_of(stock, GROUPS), tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"tokenizer.json", "generation_config.json", "plan.json", "config.json"} <= names
    assert "model.safetensors.index.json" not in names


def test_a_merged_checkpoint_is_no_source(stock: Checkpoint, tmp_path: Path):
    plan = plan_of(stock, GROUPS)
    merged = written(stock, plan, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="stock checkpoint"):
        written(merged, plan, tmp_path / "again")


def test_nan_in_an_expert(tmp_path: Path):
    model = tiny_switch()
    with torch.no_grad():
        model.encoder.block[1].layer[-1].mlp.experts["expert_3"].wi.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "stock")
    stock = Checkpoint(tmp_path / "stock")
    with pytest.raises(CheckpointError, match=r"expert_3\.wi.*NaN"):
        written(stock, plan_of(stock, GROUPS), tmp_path / "merged")
    assert not (tmp_path / "merged" / WEIGHTS).exists()


@needs_golden
@pytest.mark.parametrize(("rule", "file"), [("frequency", "normal"), ("average", "average")])
def test_golden_merge(rule: str, file: str, tmp_path: Path):
    source, layers = golden_checkpoint(), golden_layers()
    labels = golden_groupings()["router-logits/global/3/all"]["labels"]
    plans = {}
    for layer in layers:
        nu = golden_statistics()[layer.name].frequency
        groups = []
        for k in range(max(labels[layer.path]) + 1):
            members = tuple(e for e, label in enumerate(labels[layer.path]) if label == k)
            groups.append(Group(members[0], members, tuple(float(nu[e]) for e in members)))
        plans[layer.name] = LayerPlan(tuple(groups), merged=True)
    merged = written(source, Plan("golden", rule, "none", "dominant", plans), tmp_path / "merged")

    name = f"{file}__nopermute__router-logits__global3_all"
    experts = load_file(SWITCH / "merged" / f"{name}.experts.safetensors")
    family = family_of(source.config)
    for layer in layers:
        for kind in layer.layout:
            stack = merged.tensor(family.merged_tensor(layer, kind))
            for e, label in enumerate(labels[layer.path]):
                golden = experts[layer.places[kind].name(e)]
                torch.testing.assert_close(stack[label], golden, rtol=0, atol=1e-6)

    forward = load_file(SWITCH / "merged" / f"{name}.forward.safetensors")
    with torch.no_grad():
        found = load_model(tmp_path / "merged")(**golden_batch()).logits
    torch.testing.assert_close(found, forward["logits"], rtol=0, atol=1e-4)


PEAK = """
import resource, sys
from pathlib import Path
import torch
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.grouping.plan import Plan
from mcsmoe.merging.apply import write_merged
from tests.merging.test_write import material
import mcsmoe.families.switch
source, target = Checkpoint(Path(sys.argv[1])), Path(sys.argv[2])
source.tensor(source.names()[0])
plan = Plan.load(Path(sys.argv[3]))
from transformers import SwitchTransformersConfig
given = material(source)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_merged(source, plan, given, target)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_peak_memory_is_that_of_a_few_experts(tmp_path: Path):
    model = tiny_switch(d_model=256, d_ff=2048, num_layers=8, num_sparse_encoder_layers=4)
    model.save_pretrained(tmp_path / "stock")
    stock = Checkpoint(tmp_path / "stock")
    names = [layer.name for layer in family_of(stock.config).layers(stock.config)]
    plan = plan_of(stock, {name: [0, 1, 2, 3, 0, 1, 2, 3] for name in names}, alignment="none")
    (tmp_path / "merged").mkdir()
    plan.save(tmp_path)
    arguments = [str(tmp_path / "stock"), str(tmp_path / "merged"), str(tmp_path)]
    ran = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    expert_bytes = 2 * 256 * 2048 * 4
    assert int(ran.stdout) * 1024 < 6 * expert_bytes  # two members and their sum, and what the process takes
