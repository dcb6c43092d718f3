"""CoLA (Warstadt et al., 2019; GLUE): is a sentence acceptable English?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class CoLA(ClassificationTask):
    """Matthews' correlation of generated answers, and their accuracy."""

    source = Source(("sentence", "label"), "nyu-mll/glue", "cola")
    lengths = (128, 8)
    prompt = "cola sentence: {sentence}"
    answers = ("unacceptable", "acceptable")
    also = ("matthews",)
    metric = "matthews"


TASKS.register("cola")(CoLA())
