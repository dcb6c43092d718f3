import json

import numpy as np
import pytest

from mcsmoe.errors import DataError, ParameterError
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.passages import MEAN_SPAN, NOISE, corrupt
from mcsmoe.tasks.task import TASKS, Example
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.tasks.settings import settings

SENTINELS = np.arange(900, 932)
END = 1


def restore(source: list[int], target: list[int]) -> list[int]:
    """Put the spans of the target back where their sentinels stand."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token >= 900:
            current = spans[token] = []
        else:
            current.append(token)
    return [t for token in source[:-1] for t in (spans[token] if token >= 900 else [token])]


@pytest.mark.parametrize("length", [9, 10, 40, 71, 200])
def test_source_and_target_together_are_the_block(length):
    block = np.arange(100, 100 + length)
    encoded = corrupt(block, SENTINELS, END, np.random.default_rng(length))
    assert encoded.source[-1] == encoded.target[-1] == END
    assert restore(encoded.source, encoded.target) == block.tolist()
    assert encoded.source[0] == 100  # the first token stays


def test_noise_and_spans_are_as_many_as_t5_takes():
    block = np.arange(100, 300)
    encoded = corrupt(block, SENTINELS, END, np.random.default_rng(0))
    hidden = [t for t in encoded.target[:-1] if t < 900]
    assert len(hidden) == round(200 * NOISE)
    assert len(encoded.target) - 1 - len(hidden) == round(len(hidden) / MEAN_SPAN)


@pytest.fixture
def passages(tmp_path):
    rows = [{"text": " ".join(f"word{(i * j) % 7}" for j in range(60))} for i in range(20)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return settings(name="denoise", data=str(tmp_path), max_source_length=32, max_target_length=16)


def test_sources_fill_their_length_and_never_exceed_it(passages):
    task = TASKS["denoise"]
    examples = task.examples(passages, "train")
    tokenizer = train_tokenizer((e.source for e in examples), TokenizerSection(kind="bpe", vocab_size=300))
    rows = task.encode(tokenizer, examples, passages, 0)
    assert max(len(row.source) for row in rows) == 32
    assert max(len(row.target) for row in rows) <= 16
    assert rows == task.encode(tokenizer, examples, passages, 0)
    assert rows != task.encode(tokenizer, examples, passages, 1)


def test_a_tokenizer_without_words_for_spans_is_refused(passages):
    task = TASKS["denoise"]
    examples = task.examples(passages, "test")
    tokenizer = train_tokenizer((e.source for e in examples), TokenizerSection(kind="bpe", vocab_size=300))
    long = passages.model_copy(update={"max_source_length": 900, "max_target_length": 900})
    many = [Example(" ".join(e.source for e in examples), "")]
    with pytest.raises(DataError, match="the tokenizer has no <extra_id_32>: a block has up to"):
        task.encode(tokenizer, many, long, 0)
    assert task.encode(tokenizer, examples, long, 0)  # short passages need few


@pytest.mark.parametrize("words", [8, 9])
def test_the_shortest_passage_with_a_span(passages, words):
    tokenizer = train_tokenizer(["a b"], TokenizerSection(kind="word", vocab_size=64))
    example = Example(" ".join("ab"[i % 2] for i in range(words)), "")
    if words == 9:
        (row,) = TASKS["denoise"].encode(tokenizer, [example], passages, 0)
        assert len(row.source) + len(row.target) == words + 2 * 2  # a sentinel and an end in both
    else:
        with pytest.raises(DataError, match="none of 1 passages has 9 tokens"):
            TASKS["denoise"].encode(tokenizer, [example], passages, 0)


def test_a_target_that_does_not_fit_is_refused(passages):
    task = TASKS["denoise"]
    examples = task.examples(passages, "test")
    tokenizer = train_tokenizer((e.source for e in examples), TokenizerSection(kind="bpe", vocab_size=300))
    short = passages.model_copy(update={"max_target_length": 4})
    with pytest.raises(ParameterError, match="max_target_length = 4"):
        task.encode(tokenizer, examples, short, 0)
