"""RTE (Dagan et al., 2005; GLUE): does one sentence follow from another?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class RTE(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "rte")
    lengths = (256, 8)
    prompt = "rte sentence1: {sentence1} sentence2: {sentence2}"
    answers = ("entailment", "not_entailment")


TASKS.register("rte")(RTE())
