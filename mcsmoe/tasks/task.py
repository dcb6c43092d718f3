"""What a task is: examples, how they become token ids, and how predictions are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mcsmoe.params import Task as TaskParams
from mcsmoe.registry import Registry
from mcsmoe.tasks.score import Score

SPLITS = {"train": "train", "test": "validation"}
"""Most test sets hide their labels: figures are those of the development set."""


@dataclass(frozen=True)
class Source:
    """A data set of the hub; a local directory with files of the same splits and columns serves as well.

    `hub` is its id, `subset` the name of one of its configurations, `revision` a commit or reference, None for
    the newest. `splits` names what serves to train and to test.
    """

    columns: Sequence[str]
    hub: str | None = None
    subset: str | None = None
    revision: str | None = None
    splits: Mapping[str, str] = field(default_factory=lambda: SPLITS)


PASSAGES = Source(columns=("text",))
"""Running text, of no data set in particular."""

CONVERTED = "refs/convert/parquet"
"""The hub's own conversion of a data set that was published as a script, which `datasets` no longer runs."""


Split = Literal["train", "test"]


@dataclass(frozen=True)
class Example:
    """One source text and the text that a model should answer with; what follows is for scoring alone."""

    source: str
    target: str
    choices: tuple[str, ...] = ()
    """All that can be answered, where it is a choice; `target` is one of them."""
    references: tuple[str, ...] = ()
    """All answers that count as right, where there are several; `target` is one of them."""
    cluster: str = ""
    """What examples have in common that are scored, or drawn again, together: their question."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a source and of its target, which a model answers with; neither is padded."""

    source: list[int]
    target: list[int]


@dataclass(frozen=True)
class Prediction:
    """What a model says to an example's source, without having seen its target."""

    text: str = ""
    """What it generated, where the task `generates`."""
    likelihoods: tuple[float, ...] = ()
    """Natural logarithm of the likelihood of each choice, where the task `chooses`."""


class Task(Protocol):
    """A task.

    `generates`: it is scored on generated text; `chooses`: on the likelihood of each choice. A task that does
    neither is scored on the given target's tokens. `metric` is the name of the figure that stands for quality;
    `higher_is_better` its direction. `source` is where its data are, None for what is built in or has no home;
    `lengths` are enough tokens for its sources and targets, where no params file says how many.
    """

    metric: str
    higher_is_better: bool
    generates: bool
    chooses: bool
    source: Source | None
    lengths: tuple[int, int]

    def examples(self, settings: TaskParams, split: Split) -> list[Example]:
        """All examples of a split in a fixed order. Raises `DataError` for missing data or columns."""
        ...

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskParams, seed: int) -> list[Encoded]:
        """Token ids, cut to the lengths in `settings`; `seed` decides whatever is drawn at random."""
        ...

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Figures over predictions, in the order of `examples`; a plain number is one without an interval."""
        ...


TASKS: Registry[Task] = Registry("task", "mcsmoe.tasks")
