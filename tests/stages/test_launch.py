"""Two processes under `accelerate launch` do what one does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.routing.statistics import RoutingStatistics
from tests.stages.workplace import enter, write_params

ROOT = Path(__file__).parent.parent.parent
FINETUNE = {"epochs": 1, "evaluations": 1, "batch_size": 32}

pytestmark = pytest.mark.slow


def run(stage: str) -> None:
    """Run a stage as a user would, in the current directory."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", f"stages.{stage}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_collect_what_one_collects(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    shutil.copytree("artifacts/finetune", "artifacts/permute")
    found = []
    for processes in (1, 2):
        write_params(launch={"processes": processes})
        run("collect")
        found.append(RoutingStatistics.load(Path("artifacts/collect")))
    one, two = found
    assert one.provenance == two.provenance
    for name, layer in one.layers.items():
        assert torch.equal(layer.counts, two.layers[name].counts)
        for key, value in layer.tensors().items():
            # Sums are float64; the model's own float32 rounding differs with the batches that the shards make.
            torch.testing.assert_close(two.layers[name].tensors()[key], value, rtol=1e-5, atol=1e-5)


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
