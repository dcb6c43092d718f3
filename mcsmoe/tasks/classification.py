"""Tasks whose answer is one of a few words, which the model has to write."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.score import Column, Score, f1, matthews, share
from mcsmoe.tasks.task import Example, Prediction
from mcsmoe.tasks.text import RowTask

NO_ANSWER = -1
STATISTICS = {"f1": f1, "matthews": matthews}


class ClassificationTask(RowTask):
    """The answer is one of `answers`, in the order of the labels' codes; `prompt` is filled from a row's columns.

    `also`: what of `STATISTICS` is given beside the accuracy.
    """

    metric = "accuracy"
    prompt: str
    answers: Sequence[str]
    also: Sequence[str] = ()

    def example(self, row: Mapping[str, Any]) -> Example:
        """One example a row."""
        return Example(self.prompt.format(**row), self.answer(row["label"]), tuple(self.answers))

    def answer(self, label: int) -> str:
        """The word for a label's code. Raises `DataError` for a code without one (hidden labels are -1)."""
        if not 0 <= label < len(self.answers):
            raise DataError(f"label {label} has no answer; known are 0 to {len(self.answers) - 1}")
        return self.answers[label]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Accuracy, `also`, and the share of generated texts that are no answer at all; these count as wrong.

        Where examples belong to questions, the intervals draw questions.
        """
        known, said = self.codes([e.target for e in examples]), self.codes([p.text for p in predictions])
        clusters = [e.cluster for e in examples] if examples[0].cluster else None
        return {
            "accuracy": share((known == said).tolist(), clusters),
            **{name: Score((known, said), STATISTICS[name], clusters) for name in self.also},
            "invalid": float((said == NO_ANSWER).mean()),
        }

    def codes(self, texts: Sequence[str]) -> Column:
        """Labels' codes [N] of answers, `NO_ANSWER` for a text that is none."""
        code = {answer: i for i, answer in enumerate(self.answers)}
        return np.array([code.get(text.strip(), NO_ANSWER) for text in texts])
