"""Greedy generation: a checkpoint's generation_config.json changes no answer, and where an answer ends."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from mcsmoe.evaluation.generation import generate
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.causal import VOCABULARY, rows, tiny_mixtral
from tests.models import tiny_switch

NEW, ROWS = 6, rows(4)
MODELS: dict[str, Any] = {
    "causal": tiny_mixtral,
    "encoder-decoder": partial(tiny_switch, num_layers=2, num_decoder_layers=2),
}
EVEN = list(range(2, VOCABULARY, 2))
ASKED: dict[str, dict[str, Any]] = {
    "penalties": {"no_repeat_ngram_size": 1, "repetition_penalty": 30.0},
    "lengths": {"min_new_tokens": NEW, "max_length": 2, "max_time": 1e-9},
    "forbidden": {"suppress_tokens": EVEN, "begin_suppress_tokens": EVEN, "bad_words_ids": [[token] for token in EVEN]},
    "forced": {"forced_bos_token_id": 5, "forced_eos_token_id": 5, "decoder_start_token_id": 9, "stop_strings": ["w"]},
    "sampling": {"do_sample": True, "temperature": 100.0, "top_k": 0},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
}


@pytest.fixture(scope="module")
def tokenizer():
    words = " ".join(f"w{i:02}" for i in range(VOCABULARY))
    return train_tokenizer([words], TokenizerSection(kind="word", vocab_size=VOCABULARY))


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def usual(model, tokenizer):
    return generate(model, tokenizer, ROWS, 4, NEW)


@pytest.mark.parametrize("asked", ASKED)
def test_answers_are_the_same_whatever_the_checkpoint_asks_for(model, tokenizer, usual, asked, monkeypatch):
    usually: dict[str, Any] = {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    own = GenerationConfig(**usually | ASKED[asked])
    monkeypatch.setattr(model, "generation_config", own)
    before = own.to_dict()
    assert generate(model, tokenizer, ROWS, 4, NEW) == usual
    assert model.generation_config is own
    assert own.to_dict() == before


@torch.no_grad()
def plain(model, source, ends):
    """Token after token by hand, up to the first of `ends`."""
    causal, ids, written = not model.config.is_encoder_decoder, torch.tensor([source]), list[int]()
    for _ in range(NEW):
        so_far = torch.tensor([written], dtype=torch.long)
        if causal:
            inputs = {"input_ids": torch.cat([ids, so_far], 1)}
        else:
            inputs = {
                "input_ids": ids,
                "decoder_input_ids": torch.cat([torch.zeros(1, 1, dtype=torch.long), so_far], 1),
            }
        token = int(model(**inputs).logits[0, -1].argmax())
        if token in ends:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("own", [None, "int", "list"])
def test_an_answer_ends_at_the_taught_token_and_at_the_models_own(model, tokenizer, own, monkeypatch):
    everything = [plain(model, row.source, ()) for row in ROWS]
    third, fourth = everything[0][2], everything[-1][3]
    listed = {None: None, "int": third, "list": [third, fourth]}[own]
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=listed))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(fourth)
    ends = {fourth} | ({third} if own else set())
    expected = [plain(model, row.source, ends) for row in ROWS]
    assert expected != everything
    found = generate(model, tokenizer, ROWS, 4, NEW)
    assert found == tokenizer.batch_decode(expected, skip_special_tokens=True)
