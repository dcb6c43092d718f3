"""`evaluate` standing alone: any model that transformers loads, any task, no params file."""

import json
from pathlib import Path

import pytest
import torch

from mcsmoe.checkpoint.load import load_config
from mcsmoe.checkpoint.streamed import Blocks, Footprint
from mcsmoe.errors import MemoryLimitError, ParameterError, UnknownNameError, UserError
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from stages import evaluate
from tests.models import tiny_switch

REVIEWS = [{"sentence": f"copy {i} 2", "label": i % 2} for i in range(6)]


def llama(vocabulary: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, pad_token_id=0, eos_token_id=1, **sizes))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/validation.jsonl").write_text("\n".join(map(json.dumps, REVIEWS)))
    words = [f"copy {i} 2 negative positive" for i in range(6)]
    return train_tokenizer(words, TokenizerSection(kind="word", vocab_size=80))


@pytest.mark.parametrize("kind", ["switch", "llama"])
def test_a_stock_checkpoint_is_measured_without_params(place, capsys, kind):
    torch.manual_seed(0)
    model = tiny_switch(vocab_size=len(place)) if kind == "switch" else llama(len(place))
    model.save_pretrained("stock")
    place.save_pretrained("stock")
    evaluate.main("stock", task="sst2", data="data", limit=4)
    printed = capsys.readouterr().out
    figures = json.loads(printed[printed.index("{") :])
    assert {"accuracy", "accuracy_low", "accuracy_high", "invalid", "flops_per_token"} < set(figures)
    assert figures["parameters"] == model.num_parameters()
    assert figures["bytes"] == Path("stock/model.safetensors").stat().st_size
    assert ("experts" in figures) == (kind == "switch")
    assert figures["invalid"] == 1  # a model that learned nothing writes no label; none is drawn for it
    assert figures["accuracy"] == 0


PLAUSIBLE = [
    {"premise": f"copy {i}", "choice1": "1", "choice2": "2 2", "question": "cause", "label": 0} for i in (1, 2)
]


def test_a_model_larger_than_the_limit_is_measured_block_by_block(place, monkeypatch):
    """A task scored by likelihood."""
    Path("data/validation.jsonl").write_text("\n".join(map(json.dumps, PLAUSIBLE)))
    tiny_switch(vocab_size=len(place), d_ff=1024, num_experts=32).save_pretrained("stock")
    place.save_pretrained("stock")
    loaded: list[str] = []
    load = Blocks.load

    def noted(self: Blocks, block: str) -> None:
        loaded.append(block)
        load(self, block)

    monkeypatch.setattr(Blocks, "load", noted)

    def figures(limit):
        evaluate.main("stock", Path("figures.json"), task="copa", data="data", batch_size=1, memory_limit=limit)
        return Path("figures.json").read_bytes()

    expected = figures(None)
    assert loaded == []
    whole = Footprint.of(load_config(Path("stock"))).whole
    assert figures(str(whole)) == expected
    assert len(set(loaded)) == 8


@pytest.mark.parametrize(
    ("kind", "limit", "error", "message"),
    [
        ("switch", "1MB", MemoryLimitError, r"1000000: evaluate needs [\d,]+ bytes; raise it: to generate text"),
        ("llama", "1kB", MemoryLimitError, r"evaluate needs 14,\d+ bytes; .* type 'llama' is not read block by block"),
        ("llama", "much", ParameterError, r"^--memory-limit = 'much': a size such as 16GB"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(place, kind, limit, error, message):
    model = tiny_switch(vocab_size=len(place)) if kind == "switch" else llama(len(place))
    model.save_pretrained("stock")
    place.save_pretrained("stock")
    with pytest.raises(error, match=message):
        evaluate.main("stock", task="sst2", data="data", memory_limit=limit)


def test_what_cannot_be_is_refused_before_anything_is_loaded(place):
    with pytest.raises(UnknownNameError, match=r"unknown task 'sst3'; known: boolq, .*winogrande; did you mean"):
        evaluate.main("stock", task="sst3")
    with pytest.raises(UserError, match="--batch-size and --memory-limit go with --task"):
        evaluate.main("stock", limit=4)
