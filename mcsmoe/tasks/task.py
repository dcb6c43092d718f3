"""The interface of a task: its examples, their token ids, and the scores of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mcsmoe.params import TaskSection
from mcsmoe.registry import Registry
from mcsmoe.tasks.score import Score

SPLITS = {"train": "train", "test": "validation"}
"""The development set serves as test split, because most test sets hide their labels."""


ID = str | int
"""Shape of a name that is never read, such as that of a question."""


@dataclass(frozen=True)
class Source:
    """A data set on the hub; a local directory with files of the same splits and columns can replace it.

    `hub` is its id, `subset` the name of one of its configurations, `revision` a commit or reference (None: the
    newest). `splits` maps "train" and "test" to the data set's own split names. A column holds text, or what `shapes`
    says of it: `{"answers": {"text": [str]}}` is an object that has a list of texts, and perhaps more. `ID` is a text
    or an integer, `object` anything, such as a label, which the task itself checks.
    """

    columns: Sequence[str]
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: SPLITS)
    shapes: Mapping[str, Any] = field(default_factory=lambda: {"label": object})


PASSAGES = Source(columns=("text",))
"""Running text from any data set."""

CONVERTED = "refs/convert/parquet"
"""Revision with the hub's own conversion of a data set published as a script, which `datasets` no longer runs."""


Split = Literal["train", "test"]


@dataclass(frozen=True)
class Example:
    """A source text and the target text that a model should answer with; the other fields serve scoring only."""

    source: str
    target: str
    choices: tuple[str, ...] = ()
    """All possible answers, where the task offers a choice; `target` is one of them."""
    references: tuple[str, ...] = ()
    """What an answer is scored against, where that is more than `target`: all right answers, or an exact grade."""
    cluster: str = ""
    """Name shared by examples that are scored or resampled together, such as the id of their question."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a source and its target, unpadded."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Prediction:
    """A model's answer to an example's source; the model never sees the target."""

    text: str = ""
    """Generated text, where the task `generates`."""
    likelihoods: tuple[float, ...] = ()
    """Natural log-likelihood of each choice, where the task `chooses`."""


class Task(Protocol):
    """A task: data, prompts and scores.

    metric: name of the score that stands for quality.
    higher_is_better: its direction.
    generates: generated text is scored.
    chooses: the likelihood of each choice is scored. A task with neither is scored on its targets' tokens.
    source: where the data are; None if built in, or if `settings` must name them.
    lengths: default (source, target) lengths in tokens, where no params file sets them.
    """

    metric: str
    higher_is_better: bool
    generates: bool
    chooses: bool
    source: Source | None
    lengths: tuple[int, int]

    def examples(self, settings: TaskSection, split: Split) -> list[Example]:
        """Return all examples of a split in a fixed order.

        Raises `DataError` for missing files or columns, `ParameterError` for a data set that cannot be found.
        """
        ...

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskSection, seed: int) -> list[Encoded]:
        """Return token ids, cut to the lengths in `settings`; `seed` fixes all random draws."""
        ...

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Score predictions given in the order of `examples`; a plain number gets no interval."""
        ...


TASKS: Registry[Task] = Registry("task", "mcsmoe.tasks")
