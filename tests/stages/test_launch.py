"""Two processes under `accelerate launch` do what one does."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.families.experts import mapped_model
from mcsmoe.grouping.plan import Plan
from mcsmoe.params import Launch, Params
from stages import collect, compress, distill
from stages.common import FIGURES
from stages.launch import LAUNCHED, launched
from tests.causal import tiny_mixtral
from tests.stages.workplace import enter, write_params

ROOT = Path(__file__).parent.parent.parent
COLLECT = {
    "also": ["input-gram", "norms", "outputs", "pair-errors", "correlation", "gradients"],
    "gradient_samples": 10,
}
ONE, TWO = {"processes": 1}, {"processes": 2}
SHARES = TWO | {"fsdp": True}
FEW = {"train_limit": 60, "selection": 20}
RECOVERY = {"epochs": 1, "batch_size": 16, "learning_rate": 1.0e-4}
PRUNING = {"rank": 2, "final_ratio": 0.25, "interval": 1, "initial_warmup": 0.0, "final_warmup": 0.5}
SPY = """
import json
import os

from mcsmoe.training import loop, distillation as recovery
from mcsmoe import distributed as sharding


def shard(model, device):
    sharding.shard(model, device)
    held = [(p.to_local().numel(), p.numel()) for p in model.parameters()]
    with open(f"shares-{os.environ['RANK']}", "a") as file:
        print(json.dumps(sum(here for here, _ in held) / sum(whole for _, whole in held)), file=file)


loop.shard = recovery.shard = shard
"""

pytestmark = pytest.mark.slow


def run(stage: ModuleType, launch: Mapping[str, Any], method: str | None = None, **sections: Any) -> None:
    """Run a stage in the current directory: several processes as a user would, a single one here, without imports."""
    write_params(launch=launch, plugins=[] if launch == ONE else ["spy"], **sections)
    if launch == ONE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(LAUNCHED, "1")  # no check of the params in a process of its own
            stage.main(*([method] if method else []))
        return
    Path("spy.py").write_text(SPY)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", stage.__name__, *(["--method", method] if method else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_collect_what_one_collects(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    shutil.copytree("artifacts/finetune", "artifacts/permute")
    found, gradients = [], []
    for launch in (ONE, TWO):
        run(collect, launch, collect=COLLECT)
        found.append(RoutingStatistics.load(Path("artifacts/collect")))
        gradients.append(load_file("artifacts/collect/gradients.safetensors"))
    one, two = found
    assert one.provenance == two.provenance
    for name, layer in one.layers.items():
        assert torch.equal(layer.tokens, two.layers[name].tokens)
        assert torch.equal(layer.coselection, two.layers[name].coselection)
        for key, value in layer.tensors().items():
            # Sums are float64; the model's own float32 rounding differs with the batches that the shards make.
            scale = max(float(value.abs().max()), 1)
            torch.testing.assert_close(two.layers[name].tensors()[key], value, rtol=0, atol=1e-6 * scale, msg=key)
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


@pytest.fixture
def merged_mixtral(tmp_path, monkeypatch):
    """A place with a teacher, and a student in which two experts have one's place."""
    enter(tmp_path, monkeypatch)
    teacher = tiny_mixtral(vocab_size=128)
    teacher.save_pretrained("artifacts/finetune")
    student = mapped_model(teacher)
    with torch.no_grad():
        student.model.layers[0].mlp.gate.expert_map.fill_(1)
    save_model(student, load_tokenizer("artifacts/finetune"), Path("artifacts/merge/m-smoe"))
    shutil.copytree("artifacts/merge/m-smoe", "artifacts/distill/m-smoe")
    plan = FIGURES / "plans/m-smoe"
    plan.mkdir(parents=True)
    Plan("m-smoe", "average", "none", "dominant", layers={}).save(plan)


def test_two_processes_distill_a_mixtral_as_one_does(merged_mixtral):
    models = []
    for launch in (ONE, SHARES):
        run(distill, launch, "m-smoe", task=FEW, distill=RECOVERY)
        models.append(weights("artifacts/distill/m-smoe"))
    assert_same_steps(weights("artifacts/merge/m-smoe"), *models)
    # Student and teacher: a half each, and nothing where they are not shared out.
    shares = [json.loads(line) for file in Path().glob("shares-*") for line in file.read_text().splitlines()]
    assert len(shares) == 4
    assert shares == pytest.approx([0.5] * 4, abs=0.02)


def test_two_processes_with_half_a_mixtral_each_compress_it_as_one_does(merged_mixtral):
    models = []
    for launch in (ONE, SHARES):
        run(compress, launch, "m-smoe", task=FEW, compress=RECOVERY | PRUNING)
        models.append(weights("artifacts/compress/m-smoe"))
    one, two = models
    assert {name: value.shape for name, value in two.items()} == {name: value.shape for name, value in one.items()}
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-5)


def weights(directory: str) -> dict[str, Tensor]:
    """The state of a checkpoint."""
    state: dict[str, Tensor] = load_model(Path(directory)).state_dict()
    return state


def assert_same_steps(start: dict[str, Tensor], one: dict[str, Tensor], *others: dict[str, Tensor]) -> None:
    """The others moved from the start as one did, but for a tenth of the way.

    Of all weights together: Adam makes whole steps of gradients, too, that are nothing but rounding.
    """
    way = distance(start, one)
    assert way > 0
    for other in others:
        assert distance(one, other) < 0.1 * way


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Of all tensors of two models together."""
    return math.hypot(*(float((a[name] - b[name]).double().norm()) for name in a))
