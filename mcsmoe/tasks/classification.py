"""Classification tasks: the model generates one of a few answer words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.files import shown
from mcsmoe.tasks.score import Column, Score, f1, matthews, share
from mcsmoe.tasks.task import CONVERTED, TASKS, Example, Prediction, Source
from mcsmoe.tasks.text import RowTask, numbered

NO_ANSWER = -1
STATISTICS = {"f1": f1, "matthews": matthews}


class ClassificationTask(RowTask):
    """A task whose label i stands for the answer `answers[i]`.

    `prompt` is a format string over the columns of a row, such as `"sst2 sentence: {sentence}"`. `also` names
    the `STATISTICS` that are reported beside accuracy.
    """

    metric = "accuracy"
    prompt: str
    answers: Sequence[str]
    also: Sequence[str] = ()

    def example(self, row: Mapping[str, Any]) -> Example:
        """Fill `prompt` from the row. Raises `DataError` for a label without an answer."""
        return Example(self.prompt.format(**row), self.answer(row["label"]), tuple(self.answers))

    def answer(self, label: Any) -> str:
        """Return the answer for a label: its number from 0, which a `.csv` has as text, or the answer itself.

        Raises `DataError` for anything else, such as hidden labels (-1). Where an answer is itself a number, as in
        `answers = ("1", "2")`, the text "1" is that answer.
        """
        found = label if isinstance(label, str) and label in self.answers else numbered(self.answers, label)
        if found is None:
            known = ", ".join(f"{number} ({answer})" for number, answer in enumerate(self.answers))
            raise DataError(f"label {shown(label)} has no answer; known are {known}")
        return found

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return `accuracy`, the statistics in `also`, and `invalid`: the share of texts that are none of the answers.

        Invalid texts count as wrong. Where examples have clusters (questions), intervals resample whole clusters.
        """
        known, said = self.codes([e.target for e in examples]), self.codes([p.text for p in predictions])
        clusters = [e.cluster for e in examples] if examples[0].cluster else None
        return {
            "accuracy": share((known == said).tolist(), clusters),
            **{name: Score((known, said), STATISTICS[name], clusters) for name in self.also},
            "invalid": float((said == NO_ANSWER).mean()),
        }

    def codes(self, texts: Sequence[str]) -> Column:
        """Return the label [N] of each text, `NO_ANSWER` for a text that is not an answer."""
        code = {answer: i for i, answer in enumerate(self.answers)}
        return np.array([code.get(text.strip(), NO_ANSWER) for text in texts])


class BoolQ(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("question", "passage", "label"), "aps/super_glue", "boolq", CONVERTED)
    lengths = (512, 4)
    prompt = "boolq question: {question} passage: {passage}"
    answers = ("no", "yes")


TASKS.register("boolq")(BoolQ())


class CoLA(ClassificationTask):
    """Matthews' correlation of generated answers, and their accuracy."""

    source = Source(("sentence", "label"), "nyu-mll/glue", "cola")
    lengths = (128, 8)
    prompt = "cola sentence: {sentence}"
    answers = ("unacceptable", "acceptable")
    also = ("matthews",)
    metric = "matthews"


TASKS.register("cola")(CoLA())


COLUMNS = ("premise", "hypothesis", "label")
MATCHED = {"train": "train", "test": "validation_matched"}
MISMATCHED = {"train": "train", "test": "validation_mismatched"}


class MNLI(ClassificationTask):
    """Accuracy of generated answers, on texts of the genres in train."""

    source = Source(COLUMNS, "nyu-mll/glue", "mnli", splits=MATCHED)
    lengths = (256, 8)
    prompt = "mnli hypothesis: {hypothesis} premise: {premise}"
    answers = ("entailment", "neutral", "contradiction")


class MNLIMismatched(MNLI):
    """Accuracy of generated answers, on texts of other genres than in train."""

    source = Source(COLUMNS, "nyu-mll/glue", "mnli", splits=MISMATCHED)


TASKS.register("mnli")(MNLI())
TASKS.register("mnli_mismatched")(MNLIMismatched())


class MRPC(ClassificationTask):
    """Accuracy of generated answers, and F1 of `equivalent`."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "mrpc")
    lengths = (128, 8)
    prompt = "mrpc sentence1: {sentence1} sentence2: {sentence2}"
    answers = ("not_equivalent", "equivalent")
    also = ("f1",)


TASKS.register("mrpc")(MRPC())


class QNLI(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("question", "sentence", "label"), "nyu-mll/glue", "qnli")
    lengths = (256, 8)
    prompt = "qnli question: {question} sentence: {sentence}"
    answers = ("entailment", "not_entailment")


TASKS.register("qnli")(QNLI())


class QQP(ClassificationTask):
    """Accuracy of generated answers, and F1 of `duplicate`."""

    source = Source(("question1", "question2", "label"), "nyu-mll/glue", "qqp")
    lengths = (128, 8)
    prompt = "qqp question1: {question1} question2: {question2}"
    answers = ("not_duplicate", "duplicate")
    also = ("f1",)


TASKS.register("qqp")(QQP())


class RTE(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "rte")
    lengths = (256, 8)
    prompt = "rte sentence1: {sentence1} sentence2: {sentence2}"
    answers = ("entailment", "not_entailment")


TASKS.register("rte")(RTE())


class SST2(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("sentence", "label"), "nyu-mll/glue", "sst2")
    lengths = (128, 4)
    prompt = "sst2 sentence: {sentence}"
    answers = ("negative", "positive")


TASKS.register("sst2")(SST2())
