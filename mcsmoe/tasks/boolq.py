"""BoolQ (Clark et al., 2019; SuperGLUE): yes or no, as a passage says?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import CONVERTED, Source
from mcsmoe.tasks.task import TASKS


class BoolQ(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("question", "passage", "label"), "aps/super_glue", "boolq", CONVERTED)
    lengths = (512, 4)
    prompt = "boolq question: {question} passage: {passage}"
    answers = ("no", "yes")


TASKS.register("boolq")(BoolQ())
