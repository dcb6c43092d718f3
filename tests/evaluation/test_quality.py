import pytest
import torch
from torch.nn import functional as F

from mcsmoe.evaluation.generation import generate
from mcsmoe.evaluation.quality import likelihood, quality
from mcsmoe.tasks.batches import collate
from mcsmoe.tasks.skills import Skills
from mcsmoe.tasks.task import TASKS, Encoded


def test_texts_come_back_in_the_order_of_the_rows(model, tokenizer, rows):
    alone = [generate(model, tokenizer, [row], 1, 10)[0] for row in rows]
    assert len(set(alone)) > 1
    assert generate(model, tokenizer, rows, 7, 10) == alone


def test_generation_sees_nothing_of_the_target(model, tokenizer, rows):
    blind = [Encoded(row.source, [1]) for row in rows]
    assert generate(model, tokenizer, blind, 4, 10) == generate(model, tokenizer, rows, 4, 10)


def test_likelihood_weighs_each_target_token_alike(model, tokenizer, rows):
    losses, right, whole = [], [], []
    for row in rows:
        batch = collate([row], tokenizer.pad_token_id, causal=False)
        with torch.no_grad():
            logits = model(**batch).logits[0]
        losses += F.cross_entropy(logits, batch["labels"][0], reduction="none").tolist()
        hits = (logits.argmax(-1) == batch["labels"][0]).tolist()
        right += hits
        whole.append(all(hits))
    assert len({len(row.target) for row in rows}) > 1
    found = likelihood(model, rows, tokenizer.pad_token_id, batch_size=6)
    assert found.cross_entropy == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found.accuracy == pytest.approx(sum(right) / len(right))
    assert found.sequence_accuracy == sum(whole) / len(whole)


class Answers(Skills):
    """The built-in task, keeping the texts that it is asked to score."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def score(self, predictions, examples):
        self.texts = [prediction.text for prediction in predictions]
        return {"exact_match": 0.0}


def test_invalid_texts_reach_the_score_as_they_are(model, tokenizer, settings, examples):
    task = Answers()
    quality(model, tokenizer, task, settings, examples, 8, 0)
    rows = TASKS["skills"].encode(tokenizer, examples, settings, 0)
    assert task.texts == generate(model, tokenizer, rows, 8, settings.max_target_length)


def test_measuring_leaves_training_mode_on_and_dropout_off(model, tokenizer, settings, examples):
    model.train()
    try:
        first = quality(model, tokenizer, TASKS["skills"], settings, examples, 8, 0)
        assert model.training
        assert quality(model, tokenizer, TASKS["skills"], settings, examples, 8, 0) == first
    finally:
        model.eval()


def test_tasks_without_one_answer_are_scored_by_token(model, tokenizer, settings, examples):
    class Tokens(Skills):
        generates = False

    scores = quality(model, tokenizer, Tokens(), settings, examples, 8, 0)
    names = ("cross_entropy", "accuracy")
    assert set(scores) == {f"{name}{bound}" for name in names for bound in ("", "_low", "_high")}
