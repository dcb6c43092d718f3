"""HellaSwag (Zellers et al., 2019): which of four endings goes on with a text?"""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.choice import ChoiceTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS, Example


class HellaSwag(ChoiceTask):
    """Accuracy of the likeliest ending; by summed log-likelihood, and per byte."""

    source = Source(("activity_label", "ctx", "endings", "label"), "Rowan/hellaswag")
    lengths = (128, 64)

    def example(self, row: Mapping[str, Any]) -> Example:
        """The endings do not stand in the prompt: each is judged as the text's own continuation."""
        choices = tuple(ending.strip() for ending in row["endings"])
        prompt = f"hellaswag {row['activity_label']}: {row['ctx']}"
        label = int(row["label"]) if row["label"] != "" else -1
        return Example(prompt, self.chosen(choices, label), choices)


TASKS.register("hellaswag")(HellaSwag())
