"""HotpotQA (Yang et al., 2018), distractor setting: questions whose answer takes two of ten paragraphs."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.tasks.extraction import ExtractionTask
from mcsmoe.tasks.source import CONVERTED, Source
from mcsmoe.tasks.task import TASKS, Example


class HotpotQA(ExtractionTask):
    """Exact match and F1 of generated answers; `yes` and `no` are right as a whole only."""

    source = Source(("question", "context", "answer"), "hotpotqa/hotpot_qa", "distractor", CONVERTED)
    lengths = (1024, 32)
    closed = ("yes", "no", "noanswer")

    def example(self, row: Mapping[str, Any]) -> Example:
        """All paragraphs in their order, which ones are needed is not told; what is too long loses the last."""
        context = row["context"]
        paragraphs = (
            f"{title}: {''.join(sentences)}"
            for title, sentences in zip(context["title"], context["sentences"], strict=True)
        )
        prompt = f"hotpotqa question: {row['question']} context: {' '.join(paragraphs)}"
        return Example(prompt, row["answer"], (), (row["answer"],))


TASKS.register("hotpotqa")(HotpotQA())
