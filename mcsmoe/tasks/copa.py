"""COPA (Roemmele et al., 2011; SuperGLUE): which of two sentences is the cause, or effect, of a premise?"""

from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.reading import Source, read_rows
from mcsmoe.tasks.task import TASKS, Example, Split
from mcsmoe.tasks.text import ClassificationTask

SOURCE = Source(columns=("premise", "choice1", "choice2", "question", "label"), configuration="copa")


class COPA(ClassificationTask):
    """Two choices named in the prompt; accuracy of generated answers."""

    answers = ("choice1", "choice2")

    def examples(self, settings: TaskParams, split: Split) -> list[Example]:
        """One example a premise."""
        return [
            Example(
                f"copa choice1: {row['choice1']} choice2: {row['choice2']} "
                f"premise: {row['premise']} question: {row['question']}",
                self.answer(row["label"]),
            )
            for row in read_rows(settings, SOURCE, split)
        ]


TASKS.register("copa")(COPA())
