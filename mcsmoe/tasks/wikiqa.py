"""WikiQA (Yang et al., 2015): which sentences of an article answer a question? One in twenty does."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS, Example, Prediction


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
