"""The common case of a task: text in, a short text out."""

from collections.abc import Sequence
from typing import Any

from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.reading import read_rows
from mcsmoe.tasks.task import Encoded, Example, Prediction, Source, Split

CARRIER = ":"
"""Stands before a target while it is tokenized, for there its first word is one that follows another."""


class TextTask:
    """Encodes source and target as they stand; `score` of a subclass compares texts, or likelihoods of texts."""

    generates = True
    chooses = False
    higher_is_better = True
    source: Source | None = None

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskParams, seed: int) -> list[Encoded]:
        """See `Task.encode`; nothing is drawn at random."""
        longest, end = settings.max_target_length, tokenizer.eos_token_id
        sources = tokenizer([e.source for e in examples], truncation=True, max_length=settings.max_source_length)
        # Many byte-level tokenizers of causal models put no space before a text that stands alone.
        targets = tokenizer([f"{CARRIER} {e.target}" for e in examples], add_special_tokens=False)
        carrier = len(tokenizer(CARRIER, add_special_tokens=False)["input_ids"])
        # The end token is put there by hand: many of these tokenizers begin a text but do not end it.
        return [
            Encoded(source, [*target[carrier:][: longest - 1], end])
            for source, target in zip(sources["input_ids"], targets["input_ids"], strict=True)
        ]


class RowTask(TextTask):
    """A task whose data set has one example a row, which `example` of a subclass makes of it."""

    source: Source

    def example(self, row: dict[str, Any]) -> Example:
        """The example of one row, whose texts have no white space at their ends. Raises `DataError`."""
        raise NotImplementedError

    def examples(self, settings: TaskParams, split: Split) -> list[Example]:
        """See `Task.examples`."""
        return [self.example(_stripped(row)) for row in read_rows(settings, self.source, split)]


def _stripped(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}


def exact_match(predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[bool]:
    """Whether each generated text is its target, apart from white space at the ends."""
    return [p.text.strip() == e.target.strip() for p, e in zip(predictions, examples, strict=True)]
