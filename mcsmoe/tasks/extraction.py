"""Questions about a text, answered in a few words: exact match and F1 over words, against all reference answers."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from mcsmoe.tasks.score import Score, share
from mcsmoe.tasks.task import Example, Prediction
from mcsmoe.tasks.text import RowTask

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class ExtractionTask(RowTask):
    """Scored as SQuAD is (Rajpurkar et al., 2016, §6.1): the best of an example's `references` counts.

    `closed`: normalised answers that are right or wrong as a whole, where single words in common count nothing.
    """

    metric = "exact_match"
    closed: Sequence[str] = ()

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """Exact match, F1 over words, and the share of generated texts that are empty; these count as wrong."""
        pairs = [(p.text, e.references) for p, e in zip(predictions, examples, strict=True)]
        return {
            "exact_match": share([max(normalized(said) == normalized(r) for r in known) for said, known in pairs]),
            "f1": share([max(word_f1(said, r, self.closed) for r in known) for said, known in pairs]),
            "invalid": sum(not normalized(p.text) for p in predictions) / len(predictions),
        }


def normalized(text: str) -> str:
    """In lower case, without punctuation and articles, single spaces between words.

    Where nothing would be left ("A" as an answer), all is kept: an empty answer is right nowhere.
    """
    lower = text.strip().lower()
    return " ".join(ARTICLES.sub(" ", lower.translate(PUNCTUATION)).split()) or lower


def word_f1(said: str, known: str, closed: Sequence[str] = ()) -> float:
    """F1 over the words of two normalised answers, in which a word counts as often as both have it."""
    ours, theirs = normalized(said), normalized(known)
    if ours in closed or theirs in closed:
        return float(ours == theirs)
    common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    return 2 * common / (len(ours.split()) + len(theirs.split()))
