"""Tasks with scores of their own: by question (MultiRC), by correlation (STS-B), by rank (WikiQA)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.files import shown
from mcsmoe.tasks.score import Score, pearson, share, spearman
from mcsmoe.tasks.task import CONVERTED, ID, TASKS, Example, Prediction, Source
from mcsmoe.tasks.text import RowTask, exact_match


class MultiRC(ClassificationTask):
    """Accuracy over answers, F1 over all answers (F1a), and the share of questions with each answer right (EM)."""

    source = Source(
        ("paragraph", "question", "answer", "idx", "label"),
        "aps/super_glue",
        "multirc",
        CONVERTED,
        shapes={"idx": {"paragraph": ID, "question": ID}, "label": object},
    )
    lengths = (512, 4)
    prompt = "multirc question: {question} answer: {answer} paragraph: {paragraph}"
    answers = ("false", "true")
    also = ("f1",)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make one example per answer; paragraph and question number together name the cluster, such as `3-0`."""
        choices, place = tuple(self.answers), row["idx"]
        cluster = f"{place['paragraph']}-{place['question']}"
        return Example(self.prompt.format(**row), self.answer(row["label"]), choices, cluster=cluster)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return the scores of `ClassificationTask.score`, with `exact_match` by question."""
        scores = super().score(predictions, examples)
        questions = defaultdict(list)
        for example, right in zip(examples, exact_match(predictions, examples), strict=True):
            questions[example.cluster].append(right)
        return scores | {"exact_match": share([all(answers) for answers in questions.values()])}


TASKS.register("multirc")(MultiRC())


SCALE = (0.0, 5.0)
NO_NUMBER = -1.0
"""Value of an answer that is not a number on the scale; it lies outside the scale to lower the correlation."""


class STSB(RowTask):
    """Pearson's correlation of generated numbers, and Spearman's."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "stsb")
    lengths = (128, 8)
    metric = "pearson"

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose target is the grade to the nearest 0.2 and whose reference is the grade itself.

        Raises `DataError` if the grade is not on the scale (hidden labels).
        """
        grade = number(row["label"])
        if grade == NO_NUMBER:
            raise DataError(f"label {shown(row['label'])} is no number from {SCALE[0]:.0f} to {SCALE[1]:.0f}")
        source = f"stsb sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
        return Example(source, f"{round(5 * grade) / 5:.1f}", references=(str(grade),))

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return both correlations with the grades, and `invalid`: the share of texts without a number on the scale."""
        columns = np.array([float(e.references[0]) for e in examples]), np.array([number(p.text) for p in predictions])
        return {
            "pearson": Score(columns, pearson),
            "spearman": Score(columns, spearman),
            "invalid": float((columns[1] == NO_NUMBER).mean()),
        }


def number(value: Any) -> float:
    """Return a text or number as a number, or `NO_NUMBER` if it is none or off the scale."""
    try:
        found = NO_NUMBER if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return NO_NUMBER
    return found if SCALE[0] <= found <= SCALE[1] else NO_NUMBER


TASKS.register("stsb")(STSB())


class WikiQA(ClassificationTask):
    """Accuracy and F1 of generated answers; MAP and MRR of a question's sentences, ranked by likelihood of `true`."""

    source = Source(
        ("question_id", "question", "answer", "label"),
        "microsoft/wiki_qa",
        shapes={"question_id": ID, "label": object},
    )
    lengths = (128, 4)
    chooses = True
    prompt = "wikiqa question: {question} answer: {answer}"
    answers = ("false", "true")
    also = ("f1",)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make one example per sentence; the question's id is the cluster."""
        choices = tuple(self.answers)
        return Example(self.prompt.format(**row), self.answer(row["label"]), choices, cluster=str(row["question_id"]))

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return accuracy, F1, MAP and MRR; MAP and MRR leave out questions without a right sentence, as is usual."""
        ranked = defaultdict(list)
        for prediction, example in zip(predictions, examples, strict=True):
            false, true = prediction.likelihoods
            ranked[example.cluster].append((true - false, example.target == self.answers[1]))
        questions = [sentences for sentences in ranked.values() if any(right for _, right in sentences)]
        return super().score(predictions, examples) | {
            "map": share([average_precision(sentences) for sentences in questions] or [0.0]),
            "mrr": share([reciprocal_rank(sentences) for sentences in questions] or [0.0]),
        }


def average_precision(sentences: Sequence[tuple[float, bool]]) -> float:
    """Average precision (scikit-learn) of (value, right) pairs, at least one of them right."""
    from sklearn.metrics import average_precision_score

    values, right = zip(*sentences, strict=True)
    return float(average_precision_score(right, values))


def reciprocal_rank(sentences: Sequence[tuple[float, bool]]) -> float:
    """1 / rank of the first right sentence by descending value.

    On ties, wrong sentences rank first, so that the order of the data earns nothing.
    """
    best = max(value for value, right in sentences if right)
    return 1 / (1 + sum(value >= best for value, right in sentences if not right))


TASKS.register("wikiqa")(WikiQA())
