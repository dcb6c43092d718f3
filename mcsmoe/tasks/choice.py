"""Tasks whose answer is one of an example's own choices: the likeliest of them is taken."""

from collections.abc import Sequence

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.task import Example, Prediction
from mcsmoe.tasks.text import RowTask


class ChoiceTask(RowTask):
    """A model is asked how likely each choice is as its answer; the source is the same for all of them."""

    metric = "accuracy"
    generates = False
    chooses = True

    def chosen(self, choices: Sequence[str], index: int) -> str:
        """The right choice. Raises `DataError` for an index without one (hidden labels)."""
        if not 0 <= index < len(choices):
            raise DataError(f"label {index} has no choice; known are 0 to {len(choices) - 1}")
        return choices[index]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Accuracy of the choice with the highest log-likelihood, and of that with the highest per UTF-8 byte.

        The sum favours short choices; bytes, unlike tokens, are the same for every tokenizer. Of choices that are
        as likely the first is taken.
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
    """Whether the choice with the highest value is the target."""
    return example.choices[int(np.argmax(values))] == example.target
