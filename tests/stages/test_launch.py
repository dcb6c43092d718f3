"""Two processes under `accelerate launch` do what one does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.architectures.mapped import mapped_model
from mcsmoe.checkpoint.load import load_model, load_tokenizer
from mcsmoe.checkpoint.save import save_model
from mcsmoe.params import Launch, Params
from mcsmoe.routing.statistics import RoutingStatistics
from stages.launch import LAUNCHED, launched
from tests.causal import tiny_mixtral
from tests.stages.workplace import enter, write_params

ROOT = Path(__file__).parent.parent.parent
COLLECT = {
    "also": ["outputs", "pair-errors", "correlation", "gradients", "activations"],
    "gradient_samples": 10,
}
FINETUNE = {"epochs": 1, "evaluations": 1, "batch_size": 32}

pytestmark = pytest.mark.slow


def run(stage: str, *options: str) -> None:
    """Run a stage as a user would, in the current directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"stages.{stage}", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_collect_what_one_collects(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    shutil.copytree("artifacts/finetune", "artifacts/permute")
    found, gradients = [], []
    for processes in (1, 2):
        write_params(launch={"processes": processes}, collect=COLLECT)
        run("collect")
        found.append(RoutingStatistics.load(Path("artifacts/collect")))
        gradients.append(load_file("artifacts/collect/gradients.safetensors"))
    one, two = found
    assert one.provenance == two.provenance
    for name, layer in one.layers.items():
        assert torch.equal(layer.counts, two.layers[name].counts)
        for key, value in layer.tensors().items():
            # Sums are float64; the model's own float32 rounding differs with the batches that the shards make.
            torch.testing.assert_close(two.layers[name].tensors()[key], value, rtol=1e-5, atol=1e-5)
        for key, value in one.measured[name].items():
            torch.testing.assert_close(two.measured[name][key], value, rtol=0, atol=1e-5)
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-3, atol=1e-5)
    # Really two: the model's float32 sums come in another order.
    assert any(not torch.equal(a, b) for a, b in zip(gradients[0].values(), gradients[1].values(), strict=True))


def test_fewer_processes_than_asked_for_are_an_error(monkeypatch):
    params = Params.load(ROOT / "params.yaml").model_copy(update={"launch": Launch(processes=2)})
    monkeypatch.setenv(LAUNCHED, "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match=r"launch\.processes = 2, but 1 were started"):
        launched(params, "stages.collect")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched(params, "stages.collect")


def test_two_processes_take_the_steps_of_one(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    models = []
    for processes in (1, 2):
        # Without router losses, whose means over a process's own tokens are not those over the whole batch.
        write_params(
            launch={"processes": processes},
            task={"train_limit": 100, "selection": 20},
            finetune=FINETUNE | {"router_z_loss": 0.0, "balance_loss": 0.0, "learning_rate": 1.0e-4},
        )
        run("finetune")
        models.append(load_model(Path("artifacts/finetune")).state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-3, atol=2e-5)


def test_two_processes_distill_a_mixtral_as_one_does(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    teacher = tiny_mixtral(vocab_size=128)
    teacher.save_pretrained("artifacts/finetune")
    student = mapped_model(teacher)
    with torch.no_grad():
        student.model.layers[0].mlp.gate.expert_map.fill_(1)
    save_model(student, load_tokenizer("artifacts/finetune"), Path("artifacts/merge/m-smoe"))
    models = []
    for processes in (1, 2):
        write_params(
            launch={"processes": processes},
            task={"train_limit": 60, "selection": 20},
            distill={"epochs": 1, "batch_size": 16, "learning_rate": 1.0e-4},
        )
        run("distill", "--method", "m-smoe")
        models.append(load_model(Path("artifacts/distill/m-smoe")).state_dict())
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-3, atol=2e-5)
    moved = models[0]["model.embed_tokens.weight"] - student.state_dict()["model.embed_tokens.weight"]
    assert moved.abs().max() > 3e-5  # more than the tolerance forgives
