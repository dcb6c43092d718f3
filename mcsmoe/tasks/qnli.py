"""QNLI (Wang et al., 2019; GLUE): does a sentence answer a question?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class QNLI(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("question", "sentence", "label"), "nyu-mll/glue", "qnli")
    lengths = (256, 8)
    prompt = "qnli question: {question} sentence: {sentence}"
    answers = ("entailment", "not_entailment")


TASKS.register("qnli")(QNLI())
