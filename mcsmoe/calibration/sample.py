"""The calibration sample: a seeded draw from the training examples, and its fingerprint."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.batches import Batch, in_order
from mcsmoe.tasks.task import TASKS, Encoded


@dataclass(frozen=True)
class Calibration:
    """Rows to run through a model, and the SHA-256 of their token ids."""

    rows: Sequence[Encoded]
    fingerprint: str

    def batches(self, pad: int, batch_size: int, part: int = 0, parts: int = 1, *, causal: bool) -> list[Batch]:
        """Padded batches of every `parts`-th row from row `part` on: the share of one process among `parts`."""
        return list(in_order(self.rows[part::parts], pad, batch_size, causal=causal))


def draw_calibration(settings: TaskParams, tokenizer: Any, samples: int, seed: int) -> Calibration:
    """`samples` rows of the training split, or all if there are fewer, drawn with `seed`."""
    task, rng = TASKS[settings.name], random.Random(seed)
    examples = task.examples(settings, "train")
    drawn = rng.sample(examples, min(samples, len(examples)))
    rows = task.encode(tokenizer, drawn, settings, seed)
    rng.shuffle(rows)  # a passage may give several rows; which of them are kept is chance, too
    rows = rows[:samples]
    digest = hashlib.sha256(repr([(row.source, row.target) for row in rows]).encode())
    return Calibration(rows, digest.hexdigest())
