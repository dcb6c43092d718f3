"""STS-B (Cer et al., 2017; GLUE): how alike are two sentences in meaning, from 0 to 5?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcsmoe.errors import DataError
from mcsmoe.tasks.score import Score, pearson, spearman
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS, Example, Prediction
from mcsmoe.tasks.text import RowTask

SCALE = (0.0, 5.0)
NO_NUMBER = -1.0
"""Stands for an answer that is not a number on the scale: outside it, so that it costs correlation."""


class STSB(RowTask):
    """Pearson's correlation of generated numbers, and Spearman's."""

    source = Source(("sentence1", "sentence2", "label"), "nyu-mll/glue", "stsb")
    lengths = (128, 8)
    metric = "pearson"

    def example(self, row: Mapping[str, Any]) -> Example:
        """The target is the grade to the nearest fifth, the reference the grade itself. Raises `DataError`."""
        grade = float(row["label"])
        if not SCALE[0] <= grade <= SCALE[1]:
            raise DataError(f"label {grade} is not from {SCALE[0]:.0f} to {SCALE[1]:.0f}")
        source = f"stsb sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
        return Example(source, f"{round(5 * grade) / 5:.1f}", references=(str(grade),))

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Both correlations with the grades, and the share of texts that are no number on the scale."""
        columns = np.array([float(e.references[0]) for e in examples]), np.array([number(p.text) for p in predictions])
        return {
            "pearson": Score(columns, pearson),
            "spearman": Score(columns, spearman),
            "invalid": float((columns[1] == NO_NUMBER).mean()),
        }


def number(text: str) -> float:
    """The number on the scale that a text is, else `NO_NUMBER`."""
    try:
        found = float(text)
    except ValueError:
        return NO_NUMBER
    return found if SCALE[0] <= found <= SCALE[1] else NO_NUMBER


TASKS.register("stsb")(STSB())
