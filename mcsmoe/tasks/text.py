"""The common case of a task: text in, a short text out, scored by comparing texts."""

from collections.abc import Sequence
from typing import Any

from mcsmoe.errors import DataError
from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.task import Encoded, Example


class TextTask:
    """Encodes source and target as they stand; `score` of a subclass compares generated texts."""

    generates = True
    higher_is_better = True

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskParams, seed: int) -> list[Encoded]:
        """See `Task.encode`; nothing is drawn at random."""
        longest, end = settings.max_target_length, tokenizer.eos_token_id
        sources = tokenizer([e.source for e in examples], truncation=True, max_length=settings.max_source_length)
        # The end token is put there by hand: many tokenizers of causal models begin a text but do not end it.
        targets = tokenizer([e.target for e in examples], add_special_tokens=False)
        return [
            Encoded(source, [*target[: longest - 1], end])
            for source, target in zip(sources["input_ids"], targets["input_ids"], strict=True)
        ]


class ClassificationTask(TextTask):
    """The answer is one of a few words, `answers`, in the order of the labels' codes."""

    metric = "accuracy"
    answers: Sequence[str]

    def answer(self, label: int) -> str:
        """The word for a label's code. Raises `DataError` for a code without one (hidden labels are -1)."""
        if not 0 <= label < len(self.answers):
            raise DataError(f"label {label} has no answer; known are 0 to {len(self.answers) - 1}")
        return self.answers[label]

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Accuracy, and the share of generated texts that are no answer at all; these count as wrong."""
        right = exact_match(predictions, examples)
        invalid = [p.strip() not in self.answers for p in predictions]
        return {"accuracy": sum(right) / len(right), "invalid": sum(invalid) / len(invalid)}


def exact_match(predictions: Sequence[str], examples: Sequence[Example]) -> list[bool]:
    """Whether each prediction is its target, apart from white space at the ends."""
    return [p.strip() == e.target.strip() for p, e in zip(predictions, examples, strict=True)]
