"""Figures of a model that is read block by block: those of one that is whole in memory, bit by bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcsmoe.calibration.memory import Batches, forwards_at_once, must_stream_scoring, scoring_needs
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.streamed import Blocks, load_streamed
from mcsmoe.errors import MemoryLimitError
from mcsmoe.evaluation import quality as module
from mcsmoe.evaluation.cost import flops_per_token
from mcsmoe.evaluation.quality import choice_likelihoods, likelihood, quality
from mcsmoe.tasks.task import TASKS, Encoded, Example
from tests import causal
from tests.evaluation.test_choices import EXAMPLES, SETTINGS
from tests.families.models import small_model
from tests.models import tiny_merged, tiny_switch
from tests.tasks.settings import settings as task_settings

MAKERS = {"switch": tiny_switch, "merged switch": tiny_merged, "mixtral": lambda **sizes: causal.tiny_mixtral(**sizes)}
MAKERS |= {name: lambda name=name, **sizes: small_model(name, **sizes) for name in ("gpt_oss", "deepseek_v3")}


@pytest.fixture(params=MAKERS)
def directory(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Any) -> Path:
    MAKERS[request.param](vocab_size=max(len(tokenizer), causal.VOCABULARY)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Blocks in the order in which they are loaded."""
    found: list[str] = []
    load = Blocks.load

    def noted(self: Blocks, block: str) -> None:
        found.append(block)
        load(self, block)

    monkeypatch.setattr(Blocks, "load", noted)
    return found


def same(found: Any, expected: Any) -> bool:
    return all(np.array_equal(value, vars(expected)[name]) for name, value in vars(found).items())


def test_likelihood(directory: Path, loaded: list[str]):
    rows, model = causal.rows(), load_streamed(directory)
    expected = likelihood(load_model(directory), rows, 0, 2)
    assert same(likelihood(model, rows, 0, 2), expected)
    assert len(loaded) == len(set(loaded))  # all batches share one reading
    longest = max(len(row.source) + len(row.target) for row in rows)
    limit = scoring_needs(model.config, Batches(3, 2, longest)).streamed
    assert forwards_at_once(model, limit, 2, longest) == 3
    assert same(likelihood(model, rows, 0, 2, memory_limit=limit), expected)
    assert len(loaded) == 3 * len(set(loaded))  # four batches in two readings more
    assert same(likelihood(model, rows, 0, 2, memory_limit=1), expected)


def test_choices(directory: Path, tokenizer: Any):
    found, expected = (
        choice_likelihoods(load(directory), tokenizer, TASKS["copa"], SETTINGS, EXAMPLES, 3, 0)
        for load in (load_streamed, load_model)
    )
    assert found == expected


def test_perplexity_with_intervals(tokenizer: Any, tmp_path: Path):
    causal.tiny_mixtral(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    settings = task_settings(name="lm", max_source_length=8)
    examples = [Example(text, text) for text in ("copy 1 2 3 4 5 6", "reverse 7 8 9 1 2")]
    found, expected = (
        quality(load(tmp_path), tokenizer, TASKS["lm"], settings, examples, 8, 0)
        for load in (load_streamed, load_model)
    )
    assert found == expected


def test_operations(directory: Path, loaded: list[str]):
    model = load_streamed(directory)
    expected = flops_per_token(load_model(directory), causal.rows(), 0)
    assert flops_per_token(model, causal.rows(), 0) == expected
    assert len(loaded) == len(set(loaded))
    assert flops_per_token(model, causal.rows(), 0, memory_limit=1) == expected


def test_logits_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch):
    model = causal.tiny_mixtral()
    expected = likelihood(model, causal.rows(), 0, 4)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 3 * causal.VOCABULARY)
    assert same(likelihood(model, causal.rows(), 0, 4), expected)


def test_what_is_streamed_and_what_is_refused():
    config = causal.tiny_mixtral(num_hidden_layers=12).config
    needs = scoring_needs(config, Batches(1, 2, 16))
    assert needs.streamed < needs.whole
    asked = {"stage": "evaluate", "config": config, "batch_size": 2, "positions": 16}
    assert not must_stream_scoring(None, generates=False, **asked)
    assert not must_stream_scoring(needs.whole, generates=False, **asked)
    assert must_stream_scoring(needs.whole - 1, generates=False, **asked)
    assert must_stream_scoring(needs.streamed, generates=False, **asked)
    with pytest.raises(MemoryLimitError, match=f"evaluate needs {needs.streamed:,} bytes; raise it, or measure fewer"):
        must_stream_scoring(needs.streamed - 1, generates=False, **asked)
    with pytest.raises(MemoryLimitError, match="to generate text, a model must be whole"):
        must_stream_scoring(needs.whole, generates=True, **asked)


def test_what_a_batch_needs_grows_with_what_it_keeps():
    config = tiny_switch().config
    few, many = (scoring_needs(config, Batches(count, 2, 16)) for count in (1, 5))
    assert few.whole == many.whole
    assert many.streamed - few.streamed > 8 * 16 * 2 * config.num_decoder_layers * config.num_heads * config.d_kv * 4


def test_rows_of_one_token(tmp_path: Path):
    causal.tiny_mixtral().save_pretrained(tmp_path)
    rows = [Encoded([3], [4])]
    assert same(likelihood(load_streamed(tmp_path), rows, 0, 2), likelihood(load_model(tmp_path), rows, 0, 2))
