"""SQuAD 2.0 (Rajpurkar et al., 2018): like SQuAD, but some questions have no answer in the paragraph."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.extraction import ExtractionTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS, Example

UNANSWERABLE = "unanswerable"


class SQuAD2(ExtractionTask):
    """Exact match and F1 of generated answers; `unanswerable` is right just where there is no reference answer."""

    source = Source(("question", "context", "answers"), "rajpurkar/squad_v2")
    lengths = (512, 32)
    closed = (UNANSWERABLE,)

    def example(self, row: Mapping[str, Any]) -> Example:
        """The target is the first reference answer, or says that there is none."""
        references = tuple(row["answers"]["text"])
        prompt = f"squad_v2 question: {row['question']} context: {row['context']}"
        return Example(prompt, references[0] if references else UNANSWERABLE, (), references or (UNANSWERABLE,))


TASKS.register("squad_v2")(SQuAD2())
