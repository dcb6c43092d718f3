"""Scores of made-up predictions, against values worked out by hand."""

import pytest

from mcsmoe.tasks.extraction import normalized, word_f1
from mcsmoe.tasks.score import Score
from mcsmoe.tasks.task import TASKS, Example, Prediction


def scores(task: str, predictions, examples) -> dict[str, float]:
    found = TASKS[task].score(predictions, examples)
    return {name: score.value if isinstance(score, Score) else score for name, score in found.items()}


def words(*texts):
    return [Prediction(text) for text in texts]


def targets(*texts, **each):
    return [Example("", text, **each) for text in texts]


YES, NO = "equivalent", "not_equivalent"


def test_accuracy_and_f1_count_what_is_no_answer_as_wrong():
    # Of `equivalent`: two found, one missed (by an answer that is none), one claimed wrongly.
    found = scores("mrpc", words(YES, f" {YES} ", "maybe", YES, NO, ""), targets(YES, YES, YES, NO, NO, NO))
    assert found == {"accuracy": 3 / 6, "f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)), "invalid": 2 / 6}


def test_matthews_correlation():
    # TP 2, TN 1, FP 1, FN 1: (2·1 − 1·1) / √(3·3·2·2)
    said = ("acceptable", "acceptable", "unacceptable", "acceptable", "unacceptable")
    known = ("acceptable", "acceptable", "acceptable", "unacceptable", "unacceptable")
    found = scores("cola", words(*said), targets(*known))
    assert found == {"accuracy": 3 / 5, "matthews": pytest.approx(1 / 6), "invalid": 0}


def test_correlations_and_numbers_that_are_none():
    known = [Example("", "", references=(grade,)) for grade in ("1.0", "2.0", "3.0", "4.0")]
    # Deviations (−1.5, −.5, .5, 1.5) and (−1, −1, −1, 3): 6 / √(5·12); ranks (2, 2, 2, 4) the same.
    found = scores("stsb", words("1.0", "1", " 1.00 ", "5.0"), known)
    assert found == {"pearson": pytest.approx(6 / 60**0.5), "spearman": pytest.approx(6 / 60**0.5), "invalid": 0}
    assert scores("stsb", words("nan", "six", "6", ""), known) == {"pearson": 0, "spearman": 0, "invalid": 1}


def test_multirc_counts_answers_and_whole_questions():
    known = [
        Example("", target, cluster=question)
        for question, target in (("a", "true"), ("a", "false"), ("b", "true"), ("b", "true"), ("c", "false"))
    ]
    found = scores("multirc", words("true", "false", "true", "false", "true"), known)
    assert found == {"accuracy": 3 / 5, "f1": pytest.approx(2 / 3), "invalid": 0, "exact_match": 1 / 3}


@pytest.mark.parametrize(
    ("said", "known", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1),
        ("big cat", "cat", 2 / 3),
        ("a cat cat cat", "cat cat dog", 2 * 2 / 6),  # a word counts as often as both have it
        ("dog", "cat", 0),
        ("the", "cat", 0),
        ("", "the", 0),
        ("", " ", 0),
        ("A.", "b", 0),
        ("A", "a", 1),
    ],
)
def test_f1_over_words(said, known, f1):
    assert word_f1(said, known) == pytest.approx(f1)


def test_normalized_keeps_articles_inside_words():
    assert normalized(" An  answer, the other: Thea's.") == "answer other theas"


def test_the_best_of_all_references_counts():
    known = [Example("", "in 1973", references=("in 1973", "October 1973", "1973"))]
    assert scores("squad", words("1973."), known) == {"exact_match": 1, "f1": 1, "invalid": 0}
    assert scores("squad", words("October"), known) == {"exact_match": 0, "f1": pytest.approx(2 / 3), "invalid": 0}
    assert scores("squad", words(" "), known) == {"exact_match": 0, "f1": 0, "invalid": 1}


def test_a_question_without_answer_is_right_as_a_whole_only():
    none, some = (Example("", r, references=(r,)) for r in ("unanswerable", "an unanswerable riddle"))
    assert scores("squad_v2", words("unanswerable", "unanswerable"), [none, some])["f1"] == 0.5
    assert scores("squad_v2", words("unanswerable thing"), [none])["f1"] == 0
    assert scores("hotpotqa", words("yes it is"), [Example("", "yes", references=("yes",))])["f1"] == 0


def test_the_likeliest_choice_by_sum_and_by_byte():
    # Sums prefer the short wrong one; per byte −2/2 < −3/5, and in the last −4/4 < −1/2 as "éé" has four bytes.
    examples = [
        Example("", "right", choices=("no", "right")),
        Example("", "no", choices=("no", "right")),
        Example("", "éé", choices=("éé", "ab")),
    ]
    predictions = [
        Prediction(likelihoods=(-2.0, -3.0)),
        Prediction(likelihoods=(-1.0, -3.0)),
        Prediction(likelihoods=(-4.0, -1.0)),
    ]
    assert scores("hellaswag", predictions, examples) == {"accuracy": 1 / 3, "normalized_accuracy": 2 / 3}
    tied = scores("copa", [Prediction(likelihoods=(-2.0, -2.0))], [Example("", "b", choices=("a", "b"))])
    assert tied == {"accuracy": 0, "normalized_accuracy": 0}


def test_map_and_mrr_rank_the_sentences_of_a_question():
    ranks = {"a": [(3.0, "false"), (2.0, "true"), (1.0, "true")], "b": [(0.0, "true"), (0.0, "false")]}
    ranks["c"] = [(9.0, "false"), (8.0, "false")]  # without any right sentence: does not count
    rows = [(question, *row) for question, found in ranks.items() for row in found]
    examples = [Example("", target, ("false", "true"), cluster=question) for question, _, target in rows]
    predictions = [Prediction("false", (-1.0, value - 1.0)) for _, value, _ in rows]
    found = scores("wikiqa", predictions, examples)
    # a: (1/2 + 2/3) / 2 and 1/2; b, a tie: half of what is found is right, and the wrong one comes first.
    assert found["map"] == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)
    assert found["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert (found["accuracy"], found["f1"], found["invalid"]) == (4 / 7, 0, 0)
