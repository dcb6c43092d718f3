"""COPA (Roemmele et al., 2011; SuperGLUE): which of two sentences is the cause, or effect, of a premise?"""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.choice import ChoiceTask
from mcsmoe.tasks.source import CONVERTED, Source
from mcsmoe.tasks.task import TASKS, Example


class COPA(ChoiceTask):
    """Accuracy of the likelier sentence; by summed log-likelihood, and per byte."""

    source = Source(("premise", "choice1", "choice2", "question", "label"), "aps/super_glue", "copa", CONVERTED)
    lengths = (128, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Both sentences stand in the prompt; the answer is one of them."""
        choices = (row["choice1"], row["choice2"])
        prompt = (
            f"copa choice1: {choices[0]} choice2: {choices[1]} premise: {row['premise']} question: {row['question']}"
        )
        return Example(prompt, self.chosen(choices, row["label"]), choices)


TASKS.register("copa")(COPA())
