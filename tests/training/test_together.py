"""Two processes train as one does: the same steps and the same curve, all losses on, some batches smaller than them."""

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mcsmoe.distributed import shard
from mcsmoe.families import family_of
from mcsmoe.families.experts import mapped_model
from mcsmoe.params import Distillation, Finetune, Training
from mcsmoe.tasks.batches import collate
from mcsmoe.tasks.task import Encoded
from mcsmoe.training.distillation import TeacherLoss
from mcsmoe.training.finetune import FullLoss
from mcsmoe.training.loop import Fit, make_accelerator
from mcsmoe.training.together import counted_tokens, own_rows
from tests.causal import tiny_mixtral
from tests.models import VOCABULARY, tiny_switch
from tests.training.processes import in_two_processes

TRAINING: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 5,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "warmup_steps": 0,
    "max_grad_norm": 1e6,  # clipping would hide a wrong scale
}
ROUTERS = Finetune(**TRAINING, router_z_loss=0.1, balance_loss=0.5, evaluations=1)
TEACHER: dict[str, Any] = {"task": 1.0, "kd": 0.5, "hidden": 0.5, "temperature": 2.0}
CASES = ["routers of a switch", "routers of a mixtral", "label-tokens", "reference"]


def rows() -> list[Encoded]:
    """Rows of very different length, in batches of 5, 5 and 1: one process has fewer than the other, or none."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, VOCABULARY, (11, 24), generator=generator).tolist()
    return [Encoded(row[: 2 + 2 * i], row[: 1 + i % 4]) for i, row in enumerate(ids)]


def sgd(groups: Any, lr: float, **_: Any) -> torch.optim.Optimizer:
    """Steps as small as the gradients, unlike Adam's, so that rounding stays small; an unused weight would show."""
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def train(case: str, fsdp: bool) -> dict[str, Any]:
    """Train a small model: its weights at the start and at the end, the curve, and what is special to this process."""
    accelerator = make_accelerator()
    switch = case.endswith("switch")
    model: Any = tiny_switch(dropout_rate=0.0, num_layers=2, num_decoder_layers=2) if switch else tiny_mixtral()
    family = family_of(model.config)
    drawn: list[float] = []
    unused: list[int] = []
    if case.startswith("routers"):
        loss: Any = FullLoss(family, family.layers(model.config), ROUTERS)
        watching = loss.watching
    else:
        teacher = tiny_mixtral(seed=1)
        if fsdp:
            shard(teacher, accelerator.device)
        loss = TeacherLoss(teacher, Distillation(**TEACHER, normalization=cast(Any, case)))
        model = mapped_model(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def drawing(model: nn.Module, batch: Any) -> Any:
        drawn.append(float(torch.rand(())))
        return loss(model, batch)

    fit = Fit(
        model=model,
        settings=Training(**TRAINING),
        epoch=lambda _: rows(),
        loss=drawing,
        pad=0,
        causal=family.causal,
        seed=0,
        accelerator=accelerator,
        fsdp=fsdp,
    )

    class Count:
        def before_step(self) -> None:
            unused.append(sum(p.grad is None for p in fit.model.parameters()))

        def after_step(self, step: int) -> None: ...

        def tensors(self) -> dict[str, torch.Tensor]:
            return {}

        def restore(self, tensors: Any) -> None: ...

    fit.hooks = Count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", sgd)
        if case.startswith("routers"):
            with watching(model):
                fit.run(case)
        else:
            fit.run(case)
    return {"start": start, "end": fit.model.state_dict(), "curve": fit.curve, "drawn": drawn, "unused": unused}


WEIGHTS = ("start", "end")


def train_all(directory: Path, *kinds: bool) -> None:
    """Write what `train` returns for each case, sharded or not, to `directory`."""
    for case in CASES:
        for fsdp in kinds:
            found = train(case, fsdp)
            place = directory / f"{case}, {fsdp}"
            place.mkdir(parents=True)
            for part in WEIGHTS:
                save_file({name: value.clone() for name, value in found.pop(part).items()}, place / part)
            (place / "rest").write_text(json.dumps(found))


def trained(directory: Path) -> dict[tuple[str, bool], dict[str, Any]]:
    """What `train_all` wrote, by case and by whether it was sharded."""
    places = {(case, fsdp): directory / f"{case}, {fsdp}" for case in CASES for fsdp in (False, True)}
    return {
        key: json.loads((place / "rest").read_text()) | {part: load_file(place / part) for part in WEIGHTS}
        for key, place in places.items()
        if place.exists()
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    one, *two = places = [tmp_path_factory.mktemp(name) for name in ("one", "first", "second")]
    train_all(one, False)
    in_two_processes(lambda rank: train_all(two[rank], False, True))
    return [trained(place) for place in places]


@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(runs, case, fsdp):
    one, two, other = runs[0][case, False], runs[1][case, fsdp], runs[2][case, fsdp]
    way = distance(one["start"], one["end"])
    assert way > 0.01
    assert distance(one["end"], two["end"]) < 1e-4 * way
    assert one["unused"] == two["unused"] == other["unused"]
    for mine, each, too in zip(one["curve"], two["curve"], other["curve"], strict=True):
        assert each == pytest.approx(mine, abs=2e-5)
        assert too == pytest.approx(mine, abs=2e-5)
    # The first process draws what a single one does, the second something else.
    assert one["drawn"] == two["drawn"]
    assert not set(two["drawn"]) & set(other["drawn"])


def test_some_experts_had_no_tokens(runs):
    assert len(set(runs[0]["routers of a switch", False]["unused"])) > 1


@pytest.mark.parametrize("causal", [False, True])
def test_each_row_counts_in_one_process(causal):
    batch = collate(rows()[:2], 0, causal=causal)
    shares = [counted_tokens(own_rows(batch, process, 3), causal) for process in range(3)]
    for stack, mask in counted_tokens(batch, causal).items():
        assert [int(share[stack].sum()) for share in shares] == [*mask.sum(1).tolist(), 0]
        assert {share[stack].shape for share in shares} == {(1, mask.shape[1])}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Of all tensors of two models together."""
    return math.hypot(*(float((a[name] - b[name]).double().norm()) for name in a))
