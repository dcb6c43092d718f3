"""Baselines that are trained: the dense model beside the full one, and experts dropped while the model trains."""

import json
from pathlib import Path

import pytest

from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.reader import Checkpoint
from stages import collect, dense, distill, evaluate, merge, permute
from tests.stages.workplace import FINETUNED, enter, write_params

TRAINING = {"epochs": 1, "warmup_steps": 0, "batch_size": 32}


@pytest.fixture
def place(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_params(
        task={"train_limit": 200, "selection": 20},
        evaluate={"limit": 10},
        finetune=TRAINING | {"evaluations": 1},
        distill=TRAINING,
        methods={"dense": ["dense"]},
        model={"config": small_config()},
    )
    return tmp_path


def small_config():
    values = json.loads((FINETUNED / "config.json").read_text())
    kept = ("model_type", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "num_experts")
    return {name: values[name] for name in kept}


def test_the_dense_baseline_is_trained_and_distilled_and_measured(place):
    dense.main("dense")
    distill.main("dense")
    evaluate.main("artifacts/distill/dense", Path("artifacts/figures/scores/distill-dense.json"))
    full, trained = load_model(FINETUNED), load_model(Path("artifacts/distill/dense"))
    assert trained.config.model_type == "t5"
    # What a token runs through: all but the router and the other experts.
    idle = sum(p.numel() for name, p in full.named_parameters() if "router" in name or ".expert_" in name)
    idle -= sum(p.numel() for name, p in full.named_parameters() if ".expert_0." in name)
    assert trained.num_parameters() == full.num_parameters() - idle
    figures = json.loads(Path("artifacts/figures/scores/distill-dense.json").read_text())
    assert figures["experts"] == 0
    assert figures["parameters"] == trained.num_parameters()
    before, after = Checkpoint(Path("artifacts/merge/dense")), Checkpoint(Path("artifacts/distill/dense"))
    assert any(not before.tensor(name).equal(after.tensor(name)) for name in before.names())


def test_task_specific_drops_during_distillation(place):
    permute.main()
    collect.main()
    merge.main("task-specific")
    distill.main("task-specific")
    steps = [Path("artifacts") / step / "task-specific" for step in ("merge", "distill")]
    held = [load_model(step).config.moe_layers for step in steps]
    assert sum(layer["experts"] for layer in held[0].values()) == 32
    assert sum(layer["experts"] for layer in held[1].values()) == 8  # two a layer
    sizes = [Checkpoint(step).size_bytes for step in steps]
    assert sizes[1] < sizes[0]
