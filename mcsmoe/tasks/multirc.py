"""MultiRC (Khashabi et al., 2018; SuperGLUE): is an answer to a question about a paragraph right? Several may be."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.source import CONVERTED, Source
from mcsmoe.tasks.task import TASKS, Example, Prediction
from mcsmoe.tasks.text import exact_match


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
