"""`evaluate` standing alone: any model that transformers loads, any task, no params file."""

import json
from pathlib import Path

import pytest
import torch

from mcsmoe.errors import UnknownNameError, UserError
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


def test_what_cannot_be_is_refused_before_anything_is_loaded(place):
    with pytest.raises(UnknownNameError, match=r"unknown task 'sst3'; known: boolq, cola, .*wikitext2, winogrande$"):
        evaluate.main("stock", task="sst3")
    with pytest.raises(UserError, match="--limit and --batch-size go with --task"):
        evaluate.main("stock", limit=4)
