"""What a task is: examples, how they become token ids, and how predictions are scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mcsmoe.params import Task as TaskParams
from mcsmoe.registry import Registry

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Example:
    """One source text and the text that a model should answer with."""

    source: str
    target: str


@dataclass(frozen=True)
class Encoded:
    """Token ids of a source and of its target, which a model answers with; neither is padded."""

    source: list[int]
    target: list[int]


class Task(Protocol):
    """A task. `generates` tells whether it is scored on generated text or on the given target's tokens.

    `metric` is the name of the figure that stands for quality; `higher_is_better` its direction.
    """

    metric: str
    higher_is_better: bool
    generates: bool

    def examples(self, settings: TaskParams, split: Split) -> list[Example]:
        """All examples of a split in a fixed order. Raises `DataError` for missing data or columns."""
        ...

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskParams, seed: int) -> list[Encoded]:
        """Token ids, cut to the lengths in `settings`; `seed` decides whatever is drawn at random."""
        ...

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Figures over generated texts, in the order of `examples`."""
        ...


TASKS: Registry[Task] = Registry("task", "mcsmoe.tasks")
