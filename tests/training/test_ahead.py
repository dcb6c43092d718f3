"""What is made ahead is what would be made in place, in order, and a training with it ends with the same bits."""

import threading
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mcsmoe.families import family_of
from mcsmoe.families.experts import mapped_model
from mcsmoe.params import Distillation, Training
from mcsmoe.training.ahead import Ahead
from mcsmoe.training.distillation import TeacherLoss
from mcsmoe.training.loop import Fit
from tests.models import tiny_switch
from tests.training.test_dropping import rows

HERE = threading.current_thread()
SETTINGS = Distillation(task=1.0, kd=0.5, hidden=0.25, temperature=2.0, normalization="label-tokens")


@pytest.mark.parametrize("beside", [False, True])
def test_values_come_in_order_and_may_be_started_early(beside: bool):
    threads = []

    def square(item: int) -> int:
        threads.append(threading.current_thread())
        return item * item

    with Ahead(iter(range(4)), square, beside) as made:
        assert made.take() == (0, 0)  # not started
        made.start()
        assert [made.take(), made.take()] == [(1, 1), (2, 4)]
        made.start()
        assert made.take() == (3, 9)
        made.start()  # there is nothing left
        with pytest.raises(StopIteration):
            made.take()
    assert all((thread is HERE) is not beside for thread in threads)


@pytest.mark.parametrize("beside", [False, True])
def test_errors_come_when_the_value_is_taken(beside: bool):
    def fail(item: int) -> int:
        raise ValueError(f"item {item}")

    with Ahead(iter([7]), fail, beside) as made:
        made.start()
        with pytest.raises(ValueError, match="item 7"):
            made.take()


def test_a_teacher_beside_the_student_changes_no_bit(monkeypatch: pytest.MonkeyPatch):
    def trained(beside: bool) -> dict[str, Any]:
        monkeypatch.setattr(Fit, "_a_core_is_idle", beside)
        torch.manual_seed(0)
        loss = TeacherLoss(tiny_switch(), SETTINGS)
        model = mapped_model(tiny_switch(dropout_rate=0.1))

        def answered(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            assert (threading.current_thread() is HERE) is not beside
            return loss.answered(batch)

        training = Training(
            epochs=1, batch_size=4, learning_rate=1e-2, weight_decay=0.1, warmup_steps=1, max_grad_norm=1.0
        )
        causal, accelerator = family_of(model.config).causal, Accelerator(cpu=True)
        fit = Fit(model, training, lambda _: rows(), loss, 0, causal, 0, accelerator, ready=answered)
        fit.run("test")
        return dict(fit.model.state_dict())

    one, other = trained(False), trained(True)
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []
