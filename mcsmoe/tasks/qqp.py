"""QQP (Quora, 2017; GLUE): do two questions ask the same?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class QQP(ClassificationTask):
    """Accuracy of generated answers, and F1 of `duplicate`."""

    source = Source(("question1", "question2", "label"), "nyu-mll/glue", "qqp")
    lengths = (128, 8)
    prompt = "qqp question1: {question1} question2: {question2}"
    answers = ("not_duplicate", "duplicate")
    also = ("f1",)


TASKS.register("qqp")(QQP())
