"""Tasks that list the choices with each example; the model's answer is the likeliest choice."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.files import shown
from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.task import CONVERTED, TASKS, Example, Prediction, Source
from mcsmoe.tasks.text import RowTask, numbered


class ChoiceTask(RowTask):
    """A task that scores the likelihood of each choice as the answer to one source."""

    metric = "accuracy"
    generates = False
    chooses = True

    def chosen(self, choices: Sequence[str], label: Any, first: int = 0) -> str:
        """Return the right choice; `label` is its number, from `first`.

        Raises `DataError` if it is no such number, as hidden labels (-1) are, or if a choice is blank: its
        log-likelihood per byte is undefined.
        """
        for number, choice in enumerate(choices, first):
            if not choice.strip():
                raise DataError(f"choice {number} is blank")
        found = numbered(choices, label, first)
        if found is None:
            known = f"known are {first} to {len(choices) - 1 + first}" if choices else "there are no choices"
            raise DataError(f"label {shown(label)} has no choice; {known}")
        return found

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return `accuracy`, by log-likelihood, and `normalized_accuracy`, by log-likelihood per UTF-8 byte.

        The plain log-likelihood favours short choices. It is divided by bytes, not tokens, because they do not
        depend on the tokenizer. Ties go to the first choice.
        """
        pairs = list(zip(predictions, examples, strict=True))
        return {
            "accuracy": share([right(p.likelihoods, e) for p, e in pairs]),
            "normalized_accuracy": share(
                [
                    right([v / len(c.encode()) for v, c in zip(p.likelihoods, e.choices, strict=True)], e)
                    for p, e in pairs
                ]
            ),
        }


def right(values: Sequence[float], example: Example) -> bool:
    """Tell whether the choice with the highest value is the target."""
    return example.choices[int(np.argmax(values))] == example.target


class COPA(ChoiceTask):
    """Accuracy of the likelier sentence; by summed log-likelihood, and per byte."""

    source = Source(("premise", "choice1", "choice2", "question", "label"), "aps/super_glue", "copa", CONVERTED)
    lengths = (128, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose prompt has both sentences; the answer is one of them."""
        choices = (row["choice1"], row["choice2"])
        prompt = (
            f"copa choice1: {choices[0]} choice2: {choices[1]} premise: {row['premise']} question: {row['question']}"
        )
        return Example(prompt, self.chosen(choices, row["label"]), choices)


TASKS.register("copa")(COPA())


class HellaSwag(ChoiceTask):
    """Accuracy of the likeliest ending; by summed log-likelihood, and per byte."""

    source = Source(
        ("activity_label", "ctx", "endings", "label"),
        "Rowan/hellaswag",
        shapes={"endings": [str], "label": object},
    )
    lengths = (128, 64)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose prompt leaves out the endings: each is scored as a continuation of the text."""
        choices = tuple(ending.strip() for ending in row["endings"])
        prompt = f"hellaswag {row['activity_label']}: {row['ctx']}"
        return Example(prompt, self.chosen(choices, row["label"]), choices)


TASKS.register("hellaswag")(HellaSwag())


class OpenBookQA(ChoiceTask):
    """Accuracy of the likeliest choice; by summed log-likelihood, and per byte. The book is closed."""

    source = Source(
        ("question_stem", "choices", "answerKey"),
        "allenai/openbookqa",
        "main",
        shapes={"choices": {"text": [str], "label": [str]}},
    )
    lengths = (128, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose prompt lists all choices with their letters; the answer is the text of one."""
        choices, letters, key = tuple(row["choices"]["text"]), row["choices"]["label"], row["answerKey"]
        if len(letters) != len(choices):
            raise DataError(f"{len(letters)} letters for {len(choices)} choices")
        if key not in letters:
            raise DataError(f"answerKey {shown(key)} has no choice; known are {', '.join(letters)}")
        listed = " ".join(f"({letter}) {choice}" for letter, choice in zip(letters, choices, strict=True))
        right = self.chosen(choices, letters.index(key))
        return Example(f"openbookqa question: {row['question_stem']} choices: {listed}", right, choices)


TASKS.register("openbookqa")(OpenBookQA())


class WinoGrande(ChoiceTask):
    """Accuracy of the likelier name; by summed log-likelihood, and per byte."""

    source = Source(
        ("sentence", "option1", "option2", "answer"),
        "allenai/winogrande",
        "winogrande_xl",
        CONVERTED,
        shapes={"answer": object},
    )
    lengths = (128, 16)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose prompt has both names; the answer (1 or 2 in the data) is one of them."""
        choices = (row["option1"], row["option2"])
        prompt = f"winogrande sentence: {row['sentence']} option1: {choices[0]} option2: {choices[1]}"
        return Example(prompt, self.chosen(choices, row["answer"], first=1), choices)


TASKS.register("winogrande")(WinoGrande())
