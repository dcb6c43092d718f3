"""MRPC (Dolan and Brockett, 2005; GLUE): do two sentences say the same?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class MRPC(ClassificationTask):
    """Accuracy of generated answers, and F1 of `equivalent`."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "mrpc")
    lengths = (128, 8)
    prompt = "mrpc sentence1: {sentence1} sentence2: {sentence2}"
    answers = ("not_equivalent", "equivalent")
    also = ("f1",)


TASKS.register("mrpc")(MRPC())
