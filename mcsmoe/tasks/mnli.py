"""MNLI (Williams et al., 2018; GLUE): does a hypothesis follow from a premise, contradict it, or neither?"""

from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS

COLUMNS = ("premise", "hypothesis", "label")
MATCHED = {"train": "train", "test": "validation_matched"}
MISMATCHED = {"train": "train", "test": "validation_mismatched"}


class MNLI(ClassificationTask):
    """Accuracy of generated answers, on texts of the genres in train."""

    source = Source(COLUMNS, "nyu-mll/glue", "mnli", splits=MATCHED)
    lengths = (256, 8)
    prompt = "mnli hypothesis: {hypothesis} premise: {premise}"
    answers = ("entailment", "neutral", "contradiction")


class MNLIMismatched(MNLI):
    """Accuracy of generated answers, on texts of other genres than in train."""

    source = Source(COLUMNS, "nyu-mll/glue", "mnli", splits=MISMATCHED)


TASKS.register("mnli")(MNLI())
TASKS.register("mnli_mismatched")(MNLIMismatched())
