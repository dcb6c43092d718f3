import pytest

from mcsmoe.errors import ParameterError
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.score import Score
from mcsmoe.tasks.skills import CODE, SKILLS, SYMBOLS
from mcsmoe.tasks.task import TASKS, Example, Prediction
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.tasks.settings import settings

TASK = TASKS["skills"]


@pytest.mark.parametrize(
    ("skill", "items", "answer"),
    [
        ("copy", [4, 1, 1], [4, 1, 1]),
        ("reverse", [4, 1, 2], [2, 1, 4]),
        ("shift", [0, SYMBOLS - 1], [1, 0]),
        ("swap", [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]),
        ("sort", [10, 9, 30], [9, 10, 30]),
        ("maximum", [3, 39, 5], [39]),
        ("deduplicate", [7, 2, 7, 2, 5], [7, 2, 5]),
    ],
)
def test_a_skill_does_what_its_name_says(skill, items, answer):
    assert SKILLS[skill][1](items) == answer


def test_the_code_is_a_bijection_that_moves_symbols():
    assert sorted(CODE) == list(range(SYMBOLS))
    assert sorted(CODE) != CODE


def test_no_test_list_occurs_in_train():
    test, train = ({e.source for e in TASK.examples(settings(train_limit=5000), s)} for s in ("test", "train"))
    assert not test & train


def test_skills_are_as_frequent_as_their_weights():
    examples = TASK.examples(settings(train_limit=10_000), "train")
    total = sum(weight for weight, _ in SKILLS.values())
    for skill, (weight, _) in SKILLS.items():
        share = sum(e.source.startswith(skill) for e in examples) / len(examples)
        assert share == pytest.approx(weight / total, abs=0.015)


def test_a_shorter_train_is_the_beginning_of_a_longer_one():
    short, long = (TASK.examples(settings(train_limit=n), "train") for n in (50, 100))
    assert long[:50] == short


def test_scores_count_each_skill():
    examples = TASK.examples(settings(), "test")[:200]
    wrong = {i for i, e in enumerate(examples) if e.source.startswith("copy")}
    scores = TASK.score([Prediction("no" if i in wrong else f" {e.target} ") for i, e in enumerate(examples)], examples)
    assert scores["exact_match_copy"] == 0
    assert scores["exact_match_reverse"] == 1
    whole = scores["exact_match"]
    assert isinstance(whole, Score)
    assert whole.value == pytest.approx(1 - len(wrong) / 200)


@pytest.mark.parametrize("causal", [True, False])
def test_a_source_ends_where_its_list_ends(causal):
    tokenizer = train_tokenizer(["copy 1 2 3 4"], TokenizerSection(kind="word", vocab_size=50), causal=causal)
    examples = [Example("copy 1 2", "1 2"), Example("copy 1 2 3 4", "1 2 3 4")]
    task = settings(max_source_length=4)
    assert [tokenizer.decode(row.source) for row in TASK.encode(tokenizer, examples, task, 0)] == ["copy 1 2 </s>"] * 2


def test_data_for_a_built_in_task_is_refused():
    with pytest.raises(ParameterError, match=r"^data = 'here': task 'skills' is built in"):
        TASK.examples(settings(data="here"), "train")
