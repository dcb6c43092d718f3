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
        sources = _ids(tokenizer, [e.source for e in examples], settings.max_source_length)
        targets = _ids(tokenizer, [e.target for e in examples], settings.max_target_length)
        return [Encoded(source, target) for source, target in zip(sources, targets, strict=True)]


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


def _ids(tokenizer: Any, texts: list[str], length: int) -> list[list[int]]:
    return tokenizer(texts, truncation=True, max_length=length)["input_ids"]
