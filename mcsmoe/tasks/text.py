"""The common case of a task: text in, a short text out."""

from collections.abc import Sequence
from typing import Any

from mcsmoe.errors import DataError
from mcsmoe.params import TaskSection
from mcsmoe.tasks.files import Row
from mcsmoe.tasks.reading import read_rows
from mcsmoe.tasks.task import Encoded, Example, Prediction, Source, Split

CARRIER = ":"
"""Put before a target while it is tokenized, so that its first word gets the ids it has after another word."""


AT_ONCE = 1000
"""Texts that the tokenizer gets at once."""


class TextTask:
    """A task that encodes source and target text unchanged; subclasses give `examples` and `score`."""

    generates = True
    chooses = False
    higher_is_better = True
    source: Source | None = None

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskSection, seed: int) -> list[Encoded]:
        """See `Task.encode`; `seed` is not used."""
        longest, end = settings.max_target_length, tokenizer.eos_token_id
        sources = _ids(tokenizer, [e.source for e in examples], truncation=True, max_length=settings.max_source_length)
        # Many byte-level tokenizers of causal models put no space before a text on its own.
        targets = _ids(tokenizer, [f"{CARRIER} {e.target}" for e in examples], add_special_tokens=False)
        carrier = len(tokenizer(CARRIER, add_special_tokens=False)["input_ids"])
        # Added by hand because many of these tokenizers add a begin token but no end token.
        return [
            Encoded(source, [*target[carrier:][: longest - 1], end])
            for source, target in zip(sources, targets, strict=True)
        ]


def _ids(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """Token ids of each text; objects of all texts at once would keep the garbage collector busy."""
    starts = range(0, len(texts), AT_ONCE)
    parts = (tokenizer(texts[i : i + AT_ONCE], return_attention_mask=False, **options) for i in starts)
    return [ids for part in parts for ids in part["input_ids"]]


class RowTask(TextTask):
    """A task with one example per row of its data set; subclasses give `example`."""

    source: Source

    def example(self, row: dict[str, Any]) -> Example:
        """Make an example from one row; its texts are already stripped of white space at both ends.

        Raises `DataError` for a label without an answer, or texts that cannot be scored.
        """
        raise NotImplementedError

    def examples(self, settings: TaskSection, split: Split) -> list[Example]:
        """See `Task.examples`; what `example` raises is told with the place of the row."""
        return [self._placed(row) for row in read_rows(settings, self.source, split)]

    def _placed(self, row: Row) -> Example:
        try:
            return self.example(_stripped(row.values))
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from None


def _stripped(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}


def numbered(answers: Sequence[str], label: Any, first: int = 0) -> str | None:
    """Return the answer whose number, from `first`, is `label`; a `.csv` has it as text: "1". None if there is none."""
    found = {str(number): answer for number, answer in enumerate(answers, first)}
    return found.get(str(label)) if type(label) is int or isinstance(label, str) else None


def exact_match(predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[bool]:
    """Tell for each generated text whether it equals its target, apart from white space at the ends."""
    return [p.text.strip() == e.target.strip() for p, e in zip(predictions, examples, strict=True)]
