"""OpenBookQA (Mihaylov et al., 2018): questions of elementary science with four choices."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.choice import ChoiceTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS, Example


class OpenBookQA(ChoiceTask):
    """Accuracy of the likeliest choice; by summed log-likelihood, and per byte. The book is closed."""

    source = Source(("question_stem", "choices", "answerKey"), "allenai/openbookqa", "main")
    lengths = (128, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """All choices stand in the prompt, by their letters; the answer is one of them."""
        choices, letters = tuple(row["choices"]["text"]), list(row["choices"]["label"])
        listed = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))
        key = letters.index(row["answerKey"]) if row["answerKey"] in letters else -1
        return Example(
            f"openbookqa question: {row['question_stem']} choices: {listed}", self.chosen(choices, key), choices
        )


TASKS.register("openbookqa")(OpenBookQA())
