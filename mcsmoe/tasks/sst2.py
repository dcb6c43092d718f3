"""SST-2 (Socher et al., 2013; GLUE): is a film review positive or negative? Scored on the development set."""

from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.reading import Source, read_rows
from mcsmoe.tasks.task import TASKS, Example, Split
from mcsmoe.tasks.text import ClassificationTask

SOURCE = Source(columns=("sentence", "label"), configuration="sst2")


class SST2(ClassificationTask):
    """Single-sentence sentiment; accuracy of generated answers."""

    answers = ("negative", "positive")

    def examples(self, settings: TaskParams, split: Split) -> list[Example]:
        """One example a sentence."""
        return [
            Example(f"sst2 sentence: {row['sentence'].strip()}", self.answer(row["label"]))
            for row in read_rows(settings, SOURCE, split)
        ]


TASKS.register("sst2")(SST2())
