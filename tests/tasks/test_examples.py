"""What each task makes of a row, and that every task whose data are at hand is read and scored whole."""

import json
from typing import Any

import pytest

from mcsmoe.errors import DataError
from mcsmoe.tasks.classification import ClassificationTask
from mcsmoe.tasks.score import Score
from mcsmoe.tasks.task import TASKS, Example, Prediction
from mcsmoe.tasks.text import RowTask
from tests.shared import DATA, needs_data
from tests.tasks.settings import settings

PAIR = {"sentence1": "A", "sentence2": "B"}
GIVEN = {"title": ["T", "U"], "sentences": [["a.", " b."], ["c."]]}
OPEN = {"question": "Q", "context": "C"}
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "boolq": ({"question": "Q", "passage": "P", "label": 1}, "boolq question: Q passage: P", "yes"),
    "cola": ({"sentence": "S", "label": 1}, "cola sentence: S", "acceptable"),
    "hellaswag": ({"activity_label": "A", "ctx": "C", "endings": ["a", "b"], "label": "1"}, "hellaswag A: C", "b"),
    "hotpotqa": (
        {"question": "Q", "context": GIVEN, "answer": "R"},
        "hotpotqa question: Q context: T: a. b. U: c.",
        "R",
    ),
    "mnli": ({"premise": "P", "hypothesis": "H", "label": 2}, "mnli hypothesis: H premise: P", "contradiction"),
    "mrpc": (PAIR | {"label": 0}, "mrpc sentence1: A sentence2: B", "not_equivalent"),
    "qnli": ({"question": "Q", "sentence": "S", "label": 0}, "qnli question: Q sentence: S", "entailment"),
    "qqp": ({"question1": "A", "question2": "B", "label": 1}, "qqp question1: A question2: B", "duplicate"),
    "rte": (PAIR | {"label": 1}, "rte sentence1: A sentence2: B", "not_entailment"),
    "squad": (OPEN | {"answers": {"text": ["x", "y"]}}, "squad question: Q context: C", "x"),
    "squad_v2": (OPEN | {"answers": {"text": []}}, "squad_v2 question: Q context: C", "unanswerable"),
    "stsb": (PAIR | {"label": 3.25}, "stsb sentence1: A sentence2: B", "3.2"),
    "multirc": (
        {"paragraph": "P", "question": "Q", "answer": "A", "idx": {"paragraph": 3, "question": 0}, "label": 1},
        "multirc question: Q answer: A paragraph: P",
        "true",
    ),
    "wikiqa": (
        {"question_id": "Q8", "question": "Q", "answer": "A", "label": 0},
        "wikiqa question: Q answer: A",
        "false",
    ),
    "openbookqa": (
        {"question_stem": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "A"},
        "openbookqa question: Q choices: (A) x (B) y",
        "x",
    ),
    "winogrande": (
        {"sentence": "S", "option1": "x", "option2": "y", "answer": "2"},
        "winogrande sentence: S option1: x option2: y",
        "y",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_prompt_and_its_answer(name):
    row, source, target = ROWS[name]
    task = TASKS[name]
    assert isinstance(task, RowTask)
    example = task.example(row)
    assert (example.source, example.target) == (source, target)
    assert set(task.source.columns) == set(row)


FINE: dict[str, list[tuple[tuple[str, ...], float]]] = {
    "stsb": [(("label",), 2.5)],
    "multirc": [(("idx", "paragraph"), -1), (("idx", "question"), -1)],
    "wikiqa": [(("question_id",), -1)],
}
"""Numbers that are grades or ids, and so what belongs there."""


@pytest.mark.parametrize("name", ROWS)
def test_a_column_of_another_shape_is_refused_with_its_place(tmp_path, name):
    """Every column, and what is in lists and objects, with a value that is neither text nor what belongs there."""
    source, row = TASKS[name].source, ROWS[name][0]
    assert source is not None
    file = tmp_path / f"{source.splits['test']}.jsonl"
    places: list[tuple[Any, ...]] = [(column,) for column in row] + [
        (column, key) for column in row for key in inside(row[column])
    ]
    for path in places:
        for wrong in (None, True, 2.5, -1, [None], {"a": 1}):
            file.write_text(json.dumps(row) + "\n" + json.dumps(changed(row, path, wrong)) + "\n")
            if (path, wrong) in FINE.get(name, ()):
                continue
            with pytest.raises(DataError) as error:
                TASKS[name].examples(settings(name=name, data=str(tmp_path)), "test")
            assert str(error.value).startswith(f"{file}, line 2: ")
            assert path[0] in str(error.value) or "label" in str(error.value)


def inside(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def changed(row: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of `row` with another value at `path`."""
    copy = row.copy()
    copy[path[0]] = changed(row[path[0]], path[1:], value) if len(path) > 1 else value
    return copy


@pytest.mark.parametrize(
    ("name", "label", "answer"),
    [
        ("mrpc", 1, "equivalent"),
        ("mrpc", "1", "equivalent"),
        ("mrpc", "not_equivalent", "not_equivalent"),
        ("boolq", "yes", "yes"),
        ("hellaswag", 0, "a"),
        ("hellaswag", "1", "b"),
        ("winogrande", "2", "y"),
        ("winogrande", 1, "x"),
        ("openbookqa", "B", "y"),
        ("stsb", "3.25", "3.2"),
        ("stsb", 3, "3.0"),
    ],
)
def test_a_label_is_a_number_or_a_name(name, label, answer):
    column = {"winogrande": "answer", "openbookqa": "answerKey"}.get(name, "label")
    assert example(name, {column: label}).target == answer


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hellaswag", {"label": ""}, 'label "" has no choice; known are 0 to 1'),
        (
            "mnli",
            {"label": -1},
            r"label -1 has no answer; known are 0 \(entailment\), 1 \(neutral\), 2 \(contradiction",
        ),
        ("mnli", {"label": "maybe"}, 'label "maybe" has no answer'),
        ("mnli", {"label": "1.0"}, 'label "1.0" has no answer'),
        ("mnli", {"label": None}, "label null has no answer"),
        ("boolq", {"label": True}, "label true has no answer"),
        ("stsb", {"label": -1.0}, r"label -1.0 is no number from 0 to 5"),
        ("stsb", {"label": float("nan")}, "label NaN is no number from 0 to 5"),
        ("stsb", {"label": True}, "label true is no number"),
        ("winogrande", {"answer": "0"}, 'label "0" has no choice; known are 1 to 2'),
        ("winogrande", {"option2": " "}, "choice 2 is blank"),
        ("hellaswag", {"endings": ["a", ""]}, "choice 1 is blank"),
        ("hellaswag", {"endings": []}, 'label "1" has no choice; there are no choices'),
        ("openbookqa", {"answerKey": "C"}, 'answerKey "C" has no choice; known are A, B'),
        ("openbookqa", {"choices": {"text": ["x"], "label": ["A", "B"]}}, "2 letters for 1 choices"),
        ("hotpotqa", {"context": {"title": ["T"], "sentences": []}}, "1 titles for 0 paragraphs"),
        ("hotpotqa", {"answer": ""}, "reference answer 0 is blank"),
        ("squad", {"answers": {"text": ["x", " "]}}, "reference answer 1 is blank"),
        ("squad", {"answers": {"text": []}}, "answers.text is empty"),
        ("squad_v2", {"answers": {"text": [""]}}, "reference answer 0 is blank"),
    ],
)
def test_what_has_no_answer_or_no_score_is_refused(name, change, message):
    with pytest.raises(DataError, match=message):
        example(name, change)


def example(name: str, change: dict[str, Any]) -> Example:
    task = TASKS[name]
    assert isinstance(task, RowTask)
    return task.example(ROWS[name][0] | change)


def test_an_answer_that_is_a_number_is_named_by_its_text():
    class Stars(ClassificationTask):
        prompt, answers = "{text}", ("1", "2", "3")

    assert [Stars().answer(label) for label in (0, "1", "3", 2)] == ["1", "1", "3", "3"]


LOCAL = {
    "boolq": ("boolq", 3270),
    "copa": ("copa", 100),
    "hotpotqa": ("hotpot_qa", 500),
    "mrpc": ("mrpc", 408),
    "multirc": ("multirc", 4848),
    "openbookqa": ("openbookqa", 500),
    "squad": ("squad", 1578),
    "sst2": ("sst2", 872),
    "wikiqa": ("wiki_qa", 2733),
    "winogrande": ("winogrande", 1267),
}


@needs_data
@pytest.mark.parametrize("name", LOCAL)
def test_real_data_is_read_whole_and_scored(name):
    folder, rows = LOCAL[name]
    task = TASKS[name]
    examples = task.examples(settings(name=name, data=str(DATA / folder)), "test")
    assert len(examples) == rows
    assert all(e.source and e.target for e in examples)
    assert not task.chooses or all(e.target in e.choices for e in examples)
    right = [Prediction(e.target, tuple(-float(c != e.target) for c in e.choices)) for e in examples]
    wrong = [Prediction("", tuple(-float(c == e.target) for c in e.choices)) for e in examples]
    best, worst = task.score(right, examples), task.score(wrong, examples)
    assert {name: value(score) for name, score in best.items() if name != "invalid"} == {
        name: 1 for name in best if name != "invalid"
    }
    assert value(worst[task.metric]) == 0
    assert not task.generates or (value(best["invalid"]), value(worst["invalid"])) == (0, 1)


def value(score: Score | float) -> float:
    return score.value if isinstance(score, Score) else score


@needs_data
@pytest.mark.parametrize(("name", "folder", "rows"), [("denoise", "books", 562), ("wikitext2", "wikitext_2_raw", 4358)])
def test_real_text_is_read_whole(name, folder, rows):
    assert len(TASKS[name].examples(settings(name=name, data=str(DATA / folder)), "test")) == rows
