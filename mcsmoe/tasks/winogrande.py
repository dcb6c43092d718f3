"""WinoGrande (Sakaguchi et al., 2020): which of two names belongs into the gap of a sentence?"""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.choice import ChoiceTask
from mcsmoe.tasks.source import CONVERTED, Source
from mcsmoe.tasks.task import TASKS, Example


class WinoGrande(ChoiceTask):
    """Accuracy of the likelier name; by summed log-likelihood, and per byte."""

    source = Source(("sentence", "option1", "option2", "answer"), "allenai/winogrande", "winogrande_xl", CONVERTED)
    lengths = (128, 16)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Both names stand in the prompt; the answer, "1" or "2" in the data, is one of them."""
        choices = (row["option1"], row["option2"])
        prompt = f"winogrande sentence: {row['sentence']} option1: {choices[0]} option2: {choices[1]}"
        return Example(prompt, self.chosen(choices, int(row["answer"] or 0) - 1), choices)


TASKS.register("winogrande")(WinoGrande())
