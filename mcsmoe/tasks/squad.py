"""SQuAD (Rajpurkar et al., 2016): questions that a span of a paragraph of Wikipedia answers."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.extraction import ExtractionTask
from mcsmoe.tasks.source import Source
from mcsmoe.tasks.task import TASKS, Example


class SQuAD(ExtractionTask):
    """Exact match and F1 of generated answers, each against the best of all reference answers."""

    source = Source(("question", "context", "answers"), "rajpurkar/squad")
    lengths = (512, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """The target is the first reference answer."""
        references = tuple(row["answers"]["text"])
        return Example(f"squad question: {row['question']} context: {row['context']}", references[0], (), references)


TASKS.register("squad")(SQuAD())
