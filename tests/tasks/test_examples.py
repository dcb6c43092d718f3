"""What each task makes of a row, and that every task whose data are at hand is read and scored whole."""

import pytest

from mcsmoe.errors import DataError
from mcsmoe.tasks.score import Score
from mcsmoe.tasks.task import TASKS, Prediction
from mcsmoe.tasks.text import RowTask
from tests.shared import DATA, needs_data
from tests.tasks.settings import settings

PAIR = {"sentence1": "A", "sentence2": "B"}
GIVEN = {"title": ["T", "U"], "sentences": [["a.", " b."], ["c."]]}
OPEN = {"question": "Q", "context": "C"}
ROWS = {
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
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_a_prompt_and_its_answer(name):
    row, source, target = ROWS[name]
    task = TASKS[name]
    assert isinstance(task, RowTask)
    example = task.example(row)
    assert (example.source, example.target) == (source, target)
    assert set(task.source.columns) == set(row)


@pytest.mark.parametrize(
    ("name", "change"),
    [("hellaswag", {"label": ""}), ("mnli", {"label": -1}), ("stsb", {"label": -1.0})],
)
def test_a_hidden_label_has_no_answer(name, change):
    task = TASKS[name]
    assert isinstance(task, RowTask)
    with pytest.raises(DataError, match="label"):
        task.example(ROWS[name][0] | change)


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
