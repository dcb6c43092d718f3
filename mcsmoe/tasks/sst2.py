"""SST-2 (Socher et al., 2013; GLUE): is a film review positive or negative?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS


class SST2(ClassificationTask):
    """Accuracy of generated answers."""

    source = Source(("sentence", "label"), "nyu-mll/glue", "sst2")
    lengths = (128, 4)
    prompt = "sst2 sentence: {sentence}"
    answers = ("negative", "positive")


TASKS.register("sst2")(SST2())
