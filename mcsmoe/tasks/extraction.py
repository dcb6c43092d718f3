"""Questions about a text, answered in a few words; scored by exact match and F1 over words."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.errors import DataError
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
    return 2 * common / max(1, len(ours.split()) + len(theirs.split()))


def right_answers(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the reference answers of a row. Raises `DataError` if one is blank: no answer has a word of it."""
    for i, text in enumerate(texts):
        if not text.strip():
            raise DataError(f"reference answer {i} is blank")
    return tuple(texts)


class HotpotQA(ExtractionTask):
    """Exact match and F1 of generated answers; `yes` and `no` are right as a whole only."""

    source = Source(
        ("question", "context", "answer"),
        "hotpotqa/hotpot_qa",
        "distractor",
        CONVERTED,
        shapes={"context": {"title": [str], "sentences": [[str]]}},
    )
    lengths = (1024, 32)
    closed = ("yes", "no", "noanswer")

    def example(self, row: Mapping[str, Any]) -> Example:
        """Put all paragraphs into the prompt in order; a prompt that is too long is cut at the end.

        The prompt does not say which paragraphs hold the answer.
        """
        titles, sentences = row["context"]["title"], row["context"]["sentences"]
        if len(titles) != len(sentences):
            raise DataError(f"{len(titles)} titles for {len(sentences)} paragraphs")
        paragraphs = (f"{title}: {''.join(own)}" for title, own in zip(titles, sentences, strict=True))
        prompt = f"hotpotqa question: {row['question']} context: {' '.join(paragraphs)}"
        return Example(prompt, row["answer"], (), right_answers([row["answer"]]))


TASKS.register("hotpotqa")(HotpotQA())


ANSWERS = {"answers": {"text": [str]}}


class SQuAD(ExtractionTask):
    """Exact match and F1 of generated answers, each against the best of all reference answers."""

    source = Source(("question", "context", "answers"), "rajpurkar/squad", shapes=ANSWERS)
    lengths = (512, 32)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose target is the first reference answer. Raises `DataError` if there is none."""
        references = right_answers(row["answers"]["text"])
        if not references:
            raise DataError("answers.text is empty; a question without an answer is one of task squad_v2")
        return Example(f"squad question: {row['question']} context: {row['context']}", references[0], (), references)


TASKS.register("squad")(SQuAD())


UNANSWERABLE = "unanswerable"


class SQuAD2(ExtractionTask):
    """Exact match and F1 of generated answers; `unanswerable` is right just where there is no reference answer."""

    source = Source(("question", "context", "answers"), "rajpurkar/squad_v2", shapes=ANSWERS)
    lengths = (512, 32)
    closed = (UNANSWERABLE,)

    def example(self, row: Mapping[str, Any]) -> Example:
        """Make an example whose target is the first reference answer, or `UNANSWERABLE` if there is none."""
        references = right_answers(row["answers"]["text"])
        prompt = f"squad_v2 question: {row['question']} context: {row['context']}"
        return Example(prompt, references[0] if references else UNANSWERABLE, (), references or (UNANSWERABLE,))


TASKS.register("squad_v2")(SQuAD2())
