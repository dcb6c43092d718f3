"""permute → collect → merge on a small random model, and what users get wrong on the way."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsmoe.alignment import permute as alignment
from mcsmoe.alignment.matching import Match
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import WEIGHTS, Checkpoint
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.checkpoint.verify import probe_batch
from mcsmoe.errors import CheckpointError, ParameterError, UserError
from mcsmoe.families import MoELayer, sparse_layers
from mcsmoe.grouping.plan import Plan
from stages import check, collect, merge, permute
from stages.common import RECIPES, explained
from tests.models import EXPERTS
from tests.stages.workplace import FINETUNED, write_params

ROOT = Path(__file__).parent.parent.parent
MERGED = Path("artifacts/merge")


def logits(directory: Path) -> torch.Tensor:
    model = load_model(directory)
    with torch.no_grad():
        value: torch.Tensor = model(**probe_batch(model.config.vocab_size, causal=False)).logits
    return value


def test_merge_after_collect_after_permute(merged: Path):
    layers = sparse_layers(Checkpoint(FINETUNED).config)
    assert torch.equal(logits(MERGED / "none"), logits(Path("artifacts/permute")))
    plan = Plan.load(MERGED / "m-smoe")
    assert sum(plan.experts.values()) == 2 * len(layers)
    assert set(Plan.load(MERGED / "one").experts.values()) == {1}
    sizes = [Checkpoint(MERGED / method).size_bytes for method in ("none", "m-smoe", "one")]
    assert sizes == sorted(sizes, reverse=True)
    assert load_tokenizer(MERGED / "one")("copy 1 2")["input_ids"]


def test_excluded_layers_stay_as_they_were(merged: Path):
    write_params(merge={"exclude": {"encoder": [1], "decoder": [3]}, "groups": 1})
    merge.main("m-smoe")
    plan = Plan.load(MERGED / "m-smoe")
    assert plan.experts == {"encoder.1": EXPERTS, "encoder.3": 1, "decoder.1": 1, "decoder.3": EXPERTS}
    source, result = Checkpoint(Path("artifacts/permute")), Checkpoint(MERGED / "m-smoe")
    layer = sparse_layers(source.config)[0]
    stack = torch.stack([source.tensor(layer.places["wi"].name(e)) for e in range(EXPERTS)])
    assert torch.equal(result.tensor(f"{layer.path}.experts.wi.weight"), stack)
    assert result.tensor(f"{layer.path}.expert_map").tolist() == list(range(EXPERTS))


def test_activations_come_from_the_calibration_sample(merged: Path):
    written = [(MERGED / "m-smoe" / WEIGHTS).read_bytes()]
    recipes = {"m-smoe": {"alignment": "activation", "rule": "zipit-activation"}}
    for samples in (40, 8):
        write_params(recipes=recipes, calibration={"samples": samples, "batch_size": 16})
        merge.main("m-smoe")
        written.append((MERGED / "m-smoe" / WEIGHTS).read_bytes())
    assert len(set(written)) == 3


@pytest.mark.parametrize(("rule", "also"), [("fisher", "gradients"), ("exact-fisher", "exact-fisher")])
def test_fisher_information_must_have_been_collected(merged: Path, rule: str, also: str):
    before = stamps()
    write_params(recipes={"m-smoe": {"rule": rule}})
    with pytest.raises(ParameterError) as error:
        check.main()
    assert re.search(rf"collect\.also = \[\].*rule '{rule}'.*needs '{also}'", explained(error.value))
    assert stamps() == before
    settings = {"also": [also], "gradient_samples": 2}
    write_params(recipes={"m-smoe": {"rule": rule}}, collect=settings)
    collect.main()
    frequency = (MERGED / "m-smoe" / WEIGHTS).read_bytes()
    merge.main("m-smoe")
    assert (MERGED / "m-smoe" / WEIGHTS).read_bytes() != frequency


def test_a_progressive_method_merges_nothing_yet(merged: Path):
    write_params(recipes={"m-smoe": {"progressive": True}})
    merge.main("m-smoe")
    plan = Plan.load(MERGED / "m-smoe")
    assert plan.keep == 2 * len(plan.layers)
    assert set(plan.experts.values()) == {EXPERTS}
    assert torch.equal(logits(MERGED / "m-smoe"), logits(Path("artifacts/permute")))


@pytest.mark.parametrize("matching", ["weight", "activation"])
@pytest.mark.parametrize("reference", ["most-used", "first"])
def test_permute_improves_matching_and_changes_nothing_else(place: Path, matching: str, reference: str):
    write_params(permute={"matching": matching, "reference": reference})
    permute.main()
    report = json.loads(Path("artifacts/figures/permute.json").read_text())
    assert report["largest_logit_change"] < 1e-4
    for row in report["layers"].values():
        assert row["after"] > row["before"]
        assert reference != "first" or row["reference"] == 0
    torch.testing.assert_close(logits(Path("artifacts/permute")), logits(FINETUNED), rtol=0, atol=1e-4)
    before, after = Checkpoint(FINETUNED), Checkpoint(Path("artifacts/permute"))
    assert before.names() == after.names()
    moved = [n for n in before.names() if not torch.equal(before.tensor(n), after.tensor(n))]
    assert moved
    assert all(".experts." in name for name in moved)


def test_stages_give_the_same_bytes_again(merged: Path):
    files = [p for p in Path("artifacts").rglob("*") if p.is_file() and FINETUNED not in p.parents]
    before = {path: path.read_bytes() for path in files}
    permute.main()
    collect.main()
    merge.main("m-smoe")
    assert all(path.read_bytes() == before[path] for path in files)


def stamps(directory: str = "artifacts") -> dict[Path, int]:
    """When each file was changed; `write_params` writes recipes."""
    files = (path for path in Path(directory).rglob("*") if path.is_file() and RECIPES not in path.parents)
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("sections", "method", "error", "message"),
    [
        ({}, "m-smo", CheckpointError, "no resolved recipe at artifacts/recipes/m-smo.yaml: run check"),
        ({"merge": {"groups": 9}}, "m-smoe", ParameterError, "merge.groups = 9"),
        ({"merge": {"groups": 0.5}}, "m-smoe", ParameterError, "merge.groups = 0.5"),
        ({"merge": {"exclude": {"encoder": [0], "decoder": []}}}, "m-smoe", ParameterError, "encoder = 0"),
    ],
)
def test_mistakes_in_params_leave_artifacts_alone(
    merged: Path, sections: dict, method: str, error: type[UserError], message: str
):
    before = stamps()
    write_params(**sections)
    with pytest.raises(error) as refusal:
        merge.main(method)
    assert message in explained(refusal.value)
    assert stamps() == before


def test_no_model_and_no_statistics(place: Path):
    with pytest.raises(CheckpointError, match="there is no artifacts/permute: run permute first"):
        merge.main("m-smoe")
    with pytest.raises(CheckpointError, match="there is no artifacts/permute: run permute first"):
        collect.main()
    permute.main()
    with pytest.raises(CheckpointError) as error:
        merge.main("m-smoe")
    assert re.search(r"no routing statistics in artifacts/collect .*; run collect$", explained(error.value))


@pytest.mark.parametrize("stage", ["permute", "collect", "merge"])
@pytest.mark.parametrize("damage", ["truncated", "NaN", "another architecture"])
def test_damaged_or_foreign_checkpoints(merged: Path, stage: str, damage: str):
    source = FINETUNED if stage == "permute" else Path("artifacts/permute")
    if damage == "truncated":
        (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-100])
    elif damage == "another architecture":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    else:
        model = load_model(source)
        with torch.no_grad():
            model.decoder.block[3].layer[2].mlp.experts["expert_2"].wo.weight[0, 0] = torch.nan
        model.save_pretrained(source)
    before = stamps()
    message = {"truncated": "copy", "NaN": "NaN", "another architecture": "'bert' is not supported"}[damage]
    with pytest.raises(CheckpointError, match=message):
        {"permute": permute.main, "collect": collect.main, "merge": lambda: merge.main("m-smoe")}[stage]()
    assert stamps() == before


def test_a_wrong_permutation_is_not_declared_a_success(place: Path, monkeypatch: pytest.MonkeyPatch):
    def lossy(source: Checkpoint, layer: MoELayer, reference: int) -> dict[int, Match]:
        twice = torch.arange(layer.d_ff).clamp(min=layer.d_ff // 2)  # half of the neurons are one and the same
        return {e: Match(twice, 0.0, 0.0) for e in range(layer.experts) if e != reference}

    monkeypatch.setattr(alignment, "weight_matches", lossy)
    with pytest.raises(CheckpointError, match="wrong permutation"):
        permute.main()
    assert not Path("artifacts/permute").exists()


def test_one_line_and_exit_code_two(place: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-m", "stages.merge", "--method", "m-smo"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert ran.stderr == "error: no resolved recipe at artifacts/recipes/m-smo.yaml: run check\n"
