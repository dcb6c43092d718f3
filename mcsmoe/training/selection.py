"""Which checkpoint is best: measured on the selection split, which is neither trained on nor reported."""

from collections.abc import Callable, Sequence
from typing import Any

from mcsmoe.evaluation.likelihood import likelihood
from mcsmoe.tasks.task import Encoded, Task


def selection_check(
    task: Task, rows: Sequence[Encoded], pad: int, batch_size: int
) -> Callable[[Any], tuple[float, ...]]:
    """A function of the model whose value is largest for the best checkpoint.

    Exact answers first, then cross-entropy, for a task with answers; cross-entropy alone for running text.
    """

    def check(model: Any) -> tuple[float, ...]:
        found = likelihood(model, rows, pad, batch_size)
        answers = task.generates or task.chooses
        return (found.sequence_accuracy, -found.cross_entropy) if answers else (-found.cross_entropy,)

    return check
