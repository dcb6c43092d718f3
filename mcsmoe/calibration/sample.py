"""The calibration sample: a seeded draw from a task's examples or from running text, and its fingerprint."""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mcsmoe.calibration.memory import Rows
from mcsmoe.errors import DataError
from mcsmoe.params import TaskSection
from mcsmoe.tasks.files import names
from mcsmoe.tasks.reading import check_shape
from mcsmoe.tasks.task import TASKS, Encoded, Example


@dataclass(frozen=True)
class Sample:
    """Rows to run through a model, and the SHA-256 of their token ids."""

    rows: Sequence[Encoded]
    fingerprint: str

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> "Sample":
        """The sample with these rows."""
        digest = hashlib.sha256(repr([(row.source, row.target) for row in rows]).encode())
        return cls(rows, digest.hexdigest())


class Draw(Rows, Protocol):
    """How a sample is drawn: at most `samples` rows of at most `positions` tokens, in batches of `batch_size`."""

    @property
    def seed(self) -> int: ...

    def draw(self, tokenizer: Any) -> Sample:
        """Draw the sample and encode it with `tokenizer`. Raises `DataError` for missing or unusable text."""
        ...


@dataclass(frozen=True)
class Sampling:
    """A draw from a task: `samples` rows of its training split (or all, if fewer), with `seed`.

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

    def draw(self, tokenizer: Any) -> Sample:
        """Draw the sample and encode it with `tokenizer`. Raises `DataError` for missing data or columns."""
        task, rng = TASKS[self.task.name], random.Random(self.seed)
        examples = task.examples(self.task, "train")
        drawn = rng.sample(examples, min(self.samples, len(examples)))
        rows = task.encode(tokenizer, drawn, self.task, self.seed)
        rng.shuffle(rows)  # a passage may give several rows, so choose among them at random
        return Sample.of(rows[: self.samples])


@dataclass(frozen=True)
class TextSampling:
    """A draw from running text: the first `samples` blocks of `length` tokens that `texts` give, in their order.

    Only as many texts are read as are needed, so `texts` may be endless. A causal model gets plain blocks (task `lm`),
    any other one blocks with spans taken out (task `denoise`).
    """

    texts: Iterable[str]
    samples: int
    length: int
    batch_size: int
    seed: int
    causal: bool

    @property
    def settings(self) -> TaskSection:
        """Settings of the task that makes rows of text."""
        return TaskSection(
            name="lm" if self.causal else "denoise",
            data=None,
            hub=None,
            subset=None,
            column=None,
            revision=None,
            max_source_length=self.length,
            max_target_length=1 if self.causal else self.length,
            selection=1,
            train_limit=None,
        )

    @property
    def positions(self) -> int:
        """Most tokens that a row can have."""
        return self.settings.max_source_length + self.settings.max_target_length

    def draw(self, tokenizer: Any) -> Sample:
        """Draw the sample and encode it with `tokenizer`.

        Raises `DataError` if the texts are empty, `ParameterError` for an impossible `length`.
        """
        examples = [Example(text, text) for text in self._enough(tokenizer)]
        if not examples:
            raise DataError("the calibration text is empty: give texts with words in them")
        settings = self.settings
        rows = TASKS[settings.name].encode(tokenizer, examples, settings, self.seed)[: self.samples]
        if not rows:
            raise DataError(f"{len(examples)} texts are too short to predict anything from; give longer ones")
        return Sample.of(rows)

    def _enough(self, tokenizer: Any) -> Iterator[str]:
        """The first texts that together have the tokens for all rows; blank texts are skipped."""
        # A row that is corrupted comes from a block that is longer than its source.
        missing = self.samples * self.length * (1 if self.causal else 2)
        for text in self.texts:
            if text.strip():
                yield text
                missing -= len(tokenizer(text, add_special_tokens=False)["input_ids"])
            if missing <= 0:
                return


def in_random_order(texts: Any, seed: int, column: str = "text") -> Iterator[str]:
    """Yield texts in a seeded random order if they can be indexed (a list, a data set), else as they come.

    An item with columns, as in a data set, gives its `column`. Raises `DataError` if it has none of that name, for what
    is no text, with its place, or if `texts` is a single string.
    """
    if isinstance(texts, str):
        raise DataError(f"texts is one string, {texts[:20]!r}...: give a list of strings")
    if hasattr(texts, "__len__") and hasattr(texts, "__getitem__"):
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        items: Iterable[tuple[int, Any]] = ((i, texts[i]) for i in order)
    else:
        items = enumerate(texts)
    for i, item in items:
        if isinstance(item, dict):
            if column not in item:
                raise DataError(f"texts have no column {column!r}; there are {names(item)}")
            item = item[column]
        check_shape(item, str, f"texts[{i}]")
        yield item
