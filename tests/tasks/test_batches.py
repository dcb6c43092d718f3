import random

import pytest

from mcsmoe.tasks.batches import IGNORED, by_length, collate, length_grouped, model_inputs
from mcsmoe.tasks.reading import hold_out
from mcsmoe.tasks.task import Encoded, Example

ROWS = [Encoded([5] * (1 + i % 7), [6] * (1 + i % 3)) for i in range(103)]


def test_padding_is_masked_and_its_labels_do_not_count():
    batch = collate([Encoded([5, 6, 1], [7, 1]), Encoded([8, 1], [9, 9, 1])], pad=0, causal=False)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [8, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[7, 1, IGNORED], [9, 9, 1]]


def test_no_row_is_dropped_whatever_the_batch_size():
    assert sum(len(b["labels"]) for b in by_length(ROWS, 0, 10, causal=False)) == len(ROWS)
    assert sorted(i for batch in length_grouped(ROWS, 10, seed=0) for i in batch) == list(range(len(ROWS)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_tenth_of_the_real_tokens_is_the_most_padding_of_a_batch(causal: bool):
    rng = random.Random(0)
    rows = [Encoded([5] * rng.randint(1, 90), [6] * rng.randint(1, 9)) for _ in range(103)]
    found = list(by_length(rows, 0, 10, causal=causal))
    for batch in found:
        real = int(batch["attention_mask"].sum()) + (0 if causal else int((batch["labels"] != IGNORED).sum()))
        positions = batch["input_ids"].numel() + (0 if causal else batch["labels"].numel())
        assert positions <= 1.1 * real
    assert max(len(batch["labels"]) for batch in found) == 10
    assert len(found) < 50
    longest = [batch["input_ids"].shape[1] for batch in found]
    assert longest == sorted(longest, reverse=True)


def test_grouped_batches_hold_like_lengths_in_another_order_each_epoch():
    first, second = (length_grouped(ROWS, 10, seed=s) for s in (0, 1))
    assert first == length_grouped(ROWS, 10, seed=0)
    assert first != second
    padding = sum(
        max(len(ROWS[i].source) for i in batch) * len(batch) - sum(len(ROWS[i].source) for i in batch)
        for batch in first
    )
    assert padding < 0.1 * sum(len(row.source) for row in ROWS)


def test_selection_is_held_out_of_train():
    examples = [Example(str(i), str(i)) for i in range(50)]
    train, selection = hold_out(examples, 10, seed=3)
    assert len(selection) == 10
    assert sorted(train + selection, key=lambda e: int(e.source)) == examples
    assert hold_out(examples, 10, seed=4)[1] != selection


def test_a_causal_batch_predicts_the_target_behind_the_source():
    batch = collate([Encoded([5, 6, 7], [8, 1]), Encoded([9], [9, 1])], pad=0, causal=True)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 8, 1], [9, 1, IGNORED, IGNORED]]


def test_a_causal_model_sees_no_labels():
    assert set(model_inputs(collate(ROWS[:3], 0, causal=True), causal=True)) == {"input_ids", "attention_mask"}
    batch = collate(ROWS[:3], 0, causal=False)
    assert model_inputs(batch, causal=False) == batch
