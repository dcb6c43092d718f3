"""Questions about a text, answered in a few words; scored by exact match and F1 over words."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.task import CONVERTED, TASKS, Example, Prediction, Source
from mcsmoe.tasks.text import RowTask

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExtractionTask(RowTask):
    """A task scored as SQuAD (Rajpurkar et al., 2016, §6.1): each answer against its best-matching reference.

    `closed` lists normalised answers that are right or wrong as a whole: words in common earn no F1.
    """

    metric = "exact_match"
    closed: Sequence[str] = ()

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Return `exact_match`, `f1` over words, and `invalid`: the share of empty texts, which count as wrong."""
        pairs = [(p.text, e.references) for p, e in zip(predictions, examples, strict=True)]
        return {
            "exact_match": share([max(normalized(said) == normalized(r) for r in known) for said, known in pairs]),
            "f1": share([max(word_f1(said, r, self.closed) for r in known) for said, known in pairs]),
            "invalid": sum(not normalized(p.text) for p in predictions) / len(predictions),
        }


def normalized(text: str) -> str:
    """Return `text` in lower case, without punctuation and articles: "The U.S. army" → "us army".

    Punctuation and articles stay if nothing else would be left (the answer "A"): an empty answer is always wrong.
    """
    lower = text.strip().lower()
    return " ".join(ARTICLES.sub(" ", lower.translate(PUNCTUATION)).split()) or lower


def word_f1(said: str, known: str, closed: Sequence[str] = ()) -> float:
    """F1 over the words of two normalised answers; a repeated word counts as often as both answers have it."""
    ours, theirs = normalized(said), normalized(known)
    if ours in closed or theirs in closed:
        return float(ours == theirs)
    common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    return 2 * common / (len(ours.split()) + len(theirs.split()))


class HotpotQA(ExtractionTask):
    """Exact match and F1 of generated answers; `yes` and `no` are right as a whole only."""

    source = Source(("question", "context", "answer"), "hotpotqa/hotpot_qa", "distractor", CONVERTED)
    lengths = (1024, 32)
    closed = ("yes", "no", "noanswer")

    def example(self, row: Mapping[str, Any]) -> Example:
        """Put all paragraphs into the prompt in order; a prompt that is too long is cut at the end.

        The prompt does not say which paragraphs hold the answer.
        """
        context = row["context"]
        paragraphs = (
            f"{title}: {''.join(sentences)}"
            for title, sentences in zip(context["title"], context["sentences"], strict=True)
        )
        prompt = f"hotpotqa question: {row['question']} context: {' '.join(paragraphs)}"
        return Example(prompt, row["answer"], (), (row["answer"],))


TASKS.register("hotpotqa")(HotpotQA())


class SQuAD(ExtractionTask):
    """Exact match and F1 of generated answers, each against the best of all reference answers."""

    source = Source(("question", "context", "answers"), "rajpurkar/squad")
    lengths = (512, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose target is the first reference answer."""
        references = tuple(row["answers"]["text"])
        return Example(f"squad question: {row['question']} context: {row['context']}", references[0], (), references)


TASKS.register("squad")(SQuAD())


UNANSWERABLE = "unanswerable"


class SQuAD2(ExtractionTask):
    """Exact match and F1 of generated answers; `unanswerable` is right just where there is no reference answer."""

    source = Source(("question", "context", "answers"), "rajpurkar/squad_v2")
    lengths = (512, 32)
    closed = (UNANSWERABLE,)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose target is the first reference answer, or `UNANSWERABLE` if there is none."""
        references = tuple(row["answers"]["text"])
        prompt = f"squad_v2 question: {row['question']} context: {row['context']}"
        return Example(prompt, references[0] if references else UNANSWERABLE, (), references or (UNANSWERABLE,))


TASKS.register("squad_v2")(SQuAD2())
