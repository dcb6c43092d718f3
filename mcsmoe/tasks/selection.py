"""Which examples train, and which are held out to choose the best checkpoint."""

import random
from collections.abc import Sequence

from mcsmoe.errors import ParameterError
from mcsmoe.tasks.task import Example


def hold_out(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, selection): `count` examples drawn with `seed` are taken out of train; both keep their order.

    Raises `ParameterError` when nothing would be left to train on.
    """
    if count >= len(examples):
        raise ParameterError("task.selection", count, f"must be below the number of training examples, {len(examples)}")
    held = set(random.Random(seed).sample(range(len(examples)), count))
    train = [e for i, e in enumerate(examples) if i not in held]
    return train, [examples[i] for i in sorted(held)]
