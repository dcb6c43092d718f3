"""Trainings that are interrupted anywhere go on to the same weights, in one process and in two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcsmoe.checkpoint import output, resume
from mcsmoe.checkpoint.resume import Store
from mcsmoe.compression.pruner import Pruner
from mcsmoe.errors import ParameterError
from mcsmoe.families import family_of
from mcsmoe.families.experts import mapped_model
from mcsmoe.params import Training
from mcsmoe.training.dropping import ExpertDropper
from mcsmoe.training.loop import LOOK, Fit, make_accelerator
from mcsmoe.training.state import Keeper
from tests.compression.settings import compress
from tests.compression.tiny import factorised
from tests.models import tiny_switch
from tests.training.processes import in_two_processes
from tests.training.test_dropping import rows

STEPS = 4 * LOOK
SETTINGS = Training(epochs=5, batch_size=4, learning_rate=1e-2, weight_decay=0.1, warmup_steps=3, max_grad_norm=1.0)
SMALL = {"num_layers": 2, "num_sparse_encoder_layers": 1, "num_decoder_layers": 2, "num_sparse_decoder_layers": 1}
Result = tuple[dict[str, Tensor], list[dict[str, float]]]


def run(kind: str, place: Path, stop: int = STEPS, fsdp: bool = False) -> Result:
    """Train for 20 steps with dropout, or be interrupted in step `stop` + 1; weights and curve."""
    torch.manual_seed(7)
    model = factorised() if kind == "pruned" else tiny_switch(dropout_rate=0.1, **SMALL)
    if kind == "dropped":
        model = mapped_model(model)
    if kind == "bfloat16":
        model.to(torch.bfloat16)
    calls = 0

    def loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if fit.curve and fit.curve[-1]["step"] >= stop:
            raise KeyboardInterrupt
        return {"loss": model(**batch).loss}

    values = [(0.0,), (3.0,), (1.0,), (2.0,)]  # the best weights are those of the second check
    accelerator = make_accelerator()
    fit = Fit(
        model=model,
        settings=SETTINGS,
        epoch=lambda number: rows()[number % 2 :],
        loss=loss,
        pad=0,
        causal=False,
        seed=0,
        accelerator=accelerator,
        fsdp=fsdp,
        checks=4 if kind == "best" else 0,
        check=(lambda model: values[(int(fit.curve[-1]["step"]) - 1) // LOOK]) if kind == "best" else None,
        keeper=Keeper(Store(place), 0, accelerator),
    )
    if kind == "pruned":
        fit.hooks = Pruner(model, compress(interval=1, uncertainty=0.9), fit.steps)
        fit.figures = lambda: {"remaining": fit.hooks.remaining}  # type: ignore[union-attr]
    if kind == "dropped":
        family = family_of(model.config)
        dropper = ExpertDropper(model, family, family.layers(model.config), 10, ())
        with dropper.dropping(fit):
            fit.run(kind)
    else:
        fit.run(kind)
    assert fit.steps == STEPS
    return {name: value.clone() for name, value in fit.model.state_dict().items()}, fit.curve


def assert_same(found: Result, expected: Result) -> None:
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    assert [name for name, value in expected[0].items() if not torch.equal(found[0][name], value)] == []


@pytest.mark.parametrize("kind", ["best", "bfloat16", "pruned", "dropped"])
def test_an_interrupted_training_ends_with_the_same_weights(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    expected = run(kind, tmp_path / "whole")
    for stop in (3, LOOK, STEPS - 1):  # before the first state, on one, and after some
        with pytest.raises(KeyboardInterrupt):
            run(kind, tmp_path / "notes", stop)
        assert len(list((tmp_path / "notes").glob("*"))) == (0 if stop < LOOK else 2)
    capsys.readouterr()
    assert_same(run(kind, tmp_path / "notes"), expected)
    assert f"{kind}: resuming after step {STEPS - LOOK} of {STEPS}" in capsys.readouterr().out


def test_two_processes_with_half_a_model_each_go_on_as_one_does(tmp_path: Path):
    def work(rank: int) -> None:
        expected = run("best", tmp_path / "whole", fsdp=True)
        with pytest.raises(KeyboardInterrupt):
            run("best", tmp_path / "notes", 2 * LOOK + 1, fsdp=True)
        torch.distributed.barrier()
        weights, curve = run("best", tmp_path / "notes", fsdp=True)
        # The curve is the main process's.
        assert_same((weights, curve if rank == 0 else expected[1]), expected)

    in_two_processes(work)


def test_a_state_that_is_half_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = run("pruned", tmp_path / "whole")
    real, calls = output.settle, 0

    def settle(unfinished: Path, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the second state: its tensors are there, and nothing names them
            raise KeyboardInterrupt
        real(unfinished, path)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "settle", settle)
        with pytest.raises(KeyboardInterrupt):
            run("pruned", tmp_path / "notes")
    assert f"{LOOK}.tensors" in Store(tmp_path / "notes").names()
    assert_same(run("pruned", tmp_path / "notes"), expected)


@pytest.mark.parametrize("what", ["loss", "check"])
def test_a_training_that_diverges_stops_and_leaves_no_state(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    accelerator = make_accelerator()

    def loss(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(1)
        found = model(**batch).loss
        return {"loss": found * (float("nan") if what == "loss" and len(steps) == LOOK + 2 else 1), "task": found}

    steps: list[int] = []
    fit = Fit(
        model=tiny_switch(),
        settings=SETTINGS,
        epoch=lambda number: rows(),
        loss=loss,
        pad=0,
        causal=False,
        seed=0,
        accelerator=accelerator,
        checks=2,
        check=lambda model: (float("nan") if what == "check" else 1.0,),
        keeper=Keeper(Store(tmp_path / "notes"), 0, accelerator),
    )
    with pytest.raises(ParameterError, match=r"^training\.learning_rate = 0\.01: .*diverged.* at step 10 of 20"):
        fit.run("diverges")
    assert len(steps) == 2 * LOOK
    assert not Store(tmp_path / "notes").names()
