"""The calibration sample: a seeded draw from the training examples, and its fingerprint."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcsmoe.params import TaskSection
from mcsmoe.tasks.task import TASKS, Encoded


@dataclass(frozen=True)
class Sample:
    """Rows to run through a model, and the SHA-256 of their token ids."""

    rows: Sequence[Encoded]
    fingerprint: str


@dataclass(frozen=True)
class Sampling:
    """How the sample is drawn: `samples` rows of the training split (or all, if fewer), with `seed`.

    The rows run in batches of `batch_size`.
    """

    task: TaskSection
    samples: int
    batch_size: int
    seed: int

    @property
    def positions(self) -> int:
        """Most tokens that a row can have: source and target at their maximum lengths."""
        return self.task.max_source_length + self.task.max_target_length

    @property
    def values(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return vars(self) | {"task": self.task.model_dump(mode="json")}

    def draw(self, tokenizer: Any) -> Sample:
        """Draw the sample and encode it with `tokenizer`. Raises `DataError` for missing data or columns."""
        task, rng = TASKS[self.task.name], random.Random(self.seed)
        examples = task.examples(self.task, "train")
        drawn = rng.sample(examples, min(self.samples, len(examples)))
        rows = task.encode(tokenizer, drawn, self.task, self.seed)
        rng.shuffle(rows)  # a passage may give several rows, so choose among them at random
        rows = rows[: self.samples]
        digest = hashlib.sha256(repr([(row.source, row.target) for row in rows]).encode())
        return Sample(rows, digest.hexdigest())
