"""Data sets that are scored in ways of their own: by question, by correlation, by rank."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.score import Score, pearson, share, spearman
from mcsmoe.tasks.task import CONVERTED, TASKS, Example, Prediction, Source
from mcsmoe.tasks.text import RowTask, exact_match


class MultiRC(ClassificationTask):
    """Accuracy over answers, F1 over all answers (F1a), and the share of questions with each answer right (EM)."""

    source = Source(("paragraph", "question", "answer", "idx", "label"), "aps/super_glue", "multirc", CONVERTED)
    lengths = (512, 4)
    prompt = "multirc question: {question} answer: {answer} paragraph: {paragraph}"
    answers = ("false", "true")
    also = ("f1",)

    def example(self, row: Mapping[str, Any]) -> Example:
        """One example an answer; a question is known by its number and its paragraph's."""
        choices, place = tuple(self.answers), row["idx"]
        cluster = f"{place['paragraph']}-{place['question']}"
        return Example(self.prompt.format(**row), self.answer(row["label"]), choices, cluster=cluster)

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """See the class; an answer that is neither word counts as wrong."""
        scores = super().score(predictions, examples)
        questions = defaultdict(list)
        for example, right in zip(examples, exact_match(predictions, examples), strict=True):
            questions[example.cluster].append(right)
        return scores | {"exact_match": share([all(answers) for answers in questions.values()])}


TASKS.register("multirc")(MultiRC())


SCALE = (0.0, 5.0)
NO_NUMBER = -1.0
"""Stands for an answer that is not a number on the scale: outside it, so that it costs correlation."""


class STSB(RowTask):
    """Pearson's correlation of generated numbers, and Spearman's."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "stsb")
    lengths = (128, 8)
    metric = "pearson"

    def example(self, row: Mapping[str, Any]) -> Example:
        """The target is the grade to the nearest fifth, the reference the grade itself. Raises `DataError`."""
        grade = float(row["label"])
        if not SCALE[0] <= grade <= SCALE[1]:
            raise DataError(f"label {grade} is not from {SCALE[0]:.0f} to {SCALE[1]:.0f}")
        source = f"stsb sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
        return Example(source, f"{round(5 * grade) / 5:.1f}", references=(str(grade),))

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Both correlations with the grades, and the share of texts that are no number on the scale."""
        columns = np.array([float(e.references[0]) for e in examples]), np.array([number(p.text) for p in predictions])
        return {
            "pearson": Score(columns, pearson),
            "spearman": Score(columns, spearman),
            "invalid": float((columns[1] == NO_NUMBER).mean()),
        }


def number(text: str) -> float:
    """The number on the scale that a text is, else `NO_NUMBER`."""
    try:
        found = float(text)
    except ValueError:
        return NO_NUMBER
    return found if SCALE[0] <= found <= SCALE[1] else NO_NUMBER


TASKS.register("stsb")(STSB())


class WikiQA(ClassificationTask):
    """Accuracy and F1 of generated answers; MAP and MRR of a question's sentences, ranked by likelihood of `true`."""

    source = Source(("question_id", "question", "answer", "label"), "microsoft/wiki_qa")
    lengths = (128, 4)
    chooses = True
    prompt = "wikiqa question: {question} answer: {answer}"
    answers = ("false", "true")
    also = ("f1",)

    def example(self, row: Mapping[str, Any]) -> Example:
        """One example a sentence."""
        choices = tuple(self.answers)
        return Example(self.prompt.format(**row), self.answer(row["label"]), choices, cluster=row["question_id"])

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """See the class. Questions without any right sentence do not count for MAP and MRR, as is usual."""
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
    """Average precision (scikit-learn) of (value, right) pairs, of which one at least is right."""
    from sklearn.metrics import average_precision_score

    values, right = zip(*sentences, strict=True)
    return float(average_precision_score(right, values))


def reciprocal_rank(sentences: Sequence[tuple[float, bool]]) -> float:
    """1 / rank of the first right one by falling value; among equals wrong ones come first: order wins nothing."""
    best = max(value for value, right in sentences if right)
    return 1 / (1 + sum(value >= best for value, right in sentences if not right))


TASKS.register("wikiqa")(WikiQA())
