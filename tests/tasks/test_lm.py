import json

import pytest

from mcsmoe.errors import DataError, ParameterError
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.task import TASKS, Example
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.tasks.settings import settings

TASK = TASKS["lm"]
TEXTS = [" ".join(f"word{(i * j) % 7}" for j in range(20 + i)) for i in range(9)]
EXAMPLES = [Example(text, text) for text in TEXTS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TokenizerSection(kind="bpe", vocab_size=300))


@pytest.mark.parametrize("length", [2, 8, 31, 1000])
def test_blocks_hold_every_token_once_and_end_tokens_stand_between_passages(tokenizer, length):
    blocks = TASK.encode(tokenizer, EXAMPLES, settings(name="lm", max_source_length=length), 0)
    packed = [token for block in blocks for token in [*block.source, *block.target]]
    passages = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    together = [token for passage in passages for token in [*passage, tokenizer.eos_token_id]][:-1]
    # One token that is left over alone cannot be a block.
    assert packed == (together[:-1] if len(together) % length == 1 else together)
    assert {len(block.source) for block in blocks} == {1}
    assert {len(block.source + block.target) for block in blocks[:-1]} <= {length}
    assert 1 < len(blocks[-1].source + blocks[-1].target) <= length


def test_text_comes_back(tokenizer):
    (block,) = TASK.encode(tokenizer, EXAMPLES[:1], settings(name="lm", max_source_length=1000), 0)
    assert tokenizer.decode([*block.source, *block.target]).strip() == TEXTS[0]


def test_the_target_length_and_the_seed_do_not_matter(tokenizer):
    first, second = (settings(name="lm", max_source_length=8, max_target_length=length) for length in (1, 99))
    assert TASK.encode(tokenizer, EXAMPLES, first, 0) == TASK.encode(tokenizer, EXAMPLES, second, 1)


def test_blocks_too_short_to_predict_are_refused(tokenizer):
    with pytest.raises(ParameterError, match=r"^max_source_length = 1"):
        TASK.encode(tokenizer, EXAMPLES, settings(name="lm", max_source_length=1), 0)


def test_no_text_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"^\./here: there are no two tokens"):
        TASK.encode(tokenizer, [Example("", "")], settings(name="lm", data="./here"), 0)


def test_examples_are_the_passages_of_a_split(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    assert TASK.examples(settings(name="lm", data=str(tmp_path), train_limit=4), "train") == EXAMPLES[:4]
