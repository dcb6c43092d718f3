from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mcsmoe.params import Training
from mcsmoe.tasks.task import Encoded
from mcsmoe.training.loop import Fit
from mcsmoe.training.optimiser import rate_factor

ROWS = [Encoded([2 + i % 5, 1], [2 + i % 5, 1]) for i in range(50)]
SETTINGS = Training(epochs=2, batch_size=8, learning_rate=0.05, weight_decay=0.01, warmup_steps=2, max_grad_norm=1.0)


class Copier(nn.Module):
    """Predicts each label from the source token at its place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(8, 8)
        self.seen: list[int] = []

    def forward(self, batch):
        self.seen += batch["input_ids"][:, 0].tolist()
        return self.table(batch["input_ids"])


def loss(model, batch):
    assert model.training  # so that dropout is on
    logits = model(batch)
    total = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    return {"loss": total / batch["labels"].numel()}


def make_fit(**changes):
    values = {
        "model": Copier(),
        "settings": SETTINGS,
        "epoch": lambda number: ROWS,
        "loss": loss,
        "pad": 0,
        "causal": False,
        "seed": 0,
        "accelerator": Accelerator(cpu=True),
    }
    return Fit(**(values | changes))


@dataclass
class Recorder:
    """Notes when the hooks are called, and whether gradients are there."""

    model: nn.Module
    calls: list[str] = field(default_factory=list)

    def before_step(self):
        assert all(p.grad is not None for p in self.model.parameters())
        self.calls.append("before")

    def after_step(self, step):
        self.calls.append(f"after {step}")


def test_every_row_is_trained_on_once_an_epoch():
    fit = make_fit()
    fit.run("test")
    assert fit.steps == 14  # 7 batches, the last one smaller, twice
    assert sorted(fit.model.seen) == sorted(2 * [row.source[0] for row in ROWS])


def test_training_learns_and_is_deterministic():
    first, second = make_fit(), make_fit()
    for fit in (first, second):
        fit.run("test")
    assert first.curve[-1]["loss"] < 0.8 * first.curve[0]["loss"]
    assert torch.equal(first.model.table.weight, second.model.table.weight)


def test_the_best_weights_are_kept_not_the_last():
    values = iter([1.0, 3.0, 2.0])
    kept = []

    def check(model):
        kept.append(model.table.weight.detach().clone())
        return (next(values),)

    fit = make_fit(checks=3, check=check)
    fit.run("test")
    assert torch.equal(fit.model.table.weight, kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_hooks_stand_on_both_sides_of_the_step():
    fit = make_fit()
    recorder = Recorder(fit.model)
    fit.hooks = recorder
    fit.run("test")
    assert recorder.calls == [call for step in range(1, 15) for call in ("before", f"after {step}")]


@pytest.mark.parametrize(
    ("warmup", "steps", "rates"),
    [
        (4, 10, [0.2, 0.4, 0.6, 0.8, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (0, 2, [1.0, 0.5]),
        (16, 4, [1 / 3, 2 / 3, 1.0, 0.5]),  # a warm-up of the whole training would never reach the rate
        (1, 1, [1.0]),
    ],
)
def test_the_rate_rises_over_the_warm_up_and_falls(warmup, steps, rates):
    assert [rate_factor(step, warmup, steps) for step in range(1, steps + 1)] == pytest.approx(rates)
