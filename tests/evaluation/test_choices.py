"""Likelihood of choices against one choice at a time, for both kinds of models."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mcsmoe.evaluation.quality import choice_likelihoods, quality
from mcsmoe.tasks.task import TASKS, Example
from tests.causal import tiny_mixtral
from tests.tasks.settings import settings as task_settings

TASK = TASKS["copa"]
SETTINGS = task_settings(name="copa", max_target_length=2)  # choices are longer than any target may be
EXAMPLES = [
    Example("copy 1 2 3", "1 2 3", ("1 2 3", "1", "4 5 6 7")),
    Example("reverse 4", "4", ("4 4", "4")),
    Example("sort 9 8 7 1 2", "2 1", ("2 1", "1 2")),
]


def asked(model, tokenizer, examples, batch_size=4):
    return choice_likelihoods(model, tokenizer, TASK, SETTINGS, examples, batch_size, 0)


@torch.no_grad()
def one_by_one(model, tokenizer, example):
    ids = tokenizer(example.source)["input_ids"]
    for choice in example.choices:
        answer = tokenizer(choice)["input_ids"]  # the tokenizer puts the end behind every text
        assert answer[-1] == tokenizer.eos_token_id
        if model.config.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([ids]), labels=torch.tensor([answer])).logits[0]
        else:
            answer = answer[:-1]
            logits = model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
        yield sum(float(row[token]) for row, token in zip(logits.double().log_softmax(-1), answer, strict=True))


@pytest.fixture(params=["encoder-decoder", "causal"])
def either(request, model, tokenizer):
    return model if request.param == "encoder-decoder" else tiny_mixtral(vocab_size=len(tokenizer))


def test_likelihoods_are_those_of_each_choice_alone(either, tokenizer):
    found = asked(either, tokenizer, EXAMPLES)
    for example, values in zip(EXAMPLES, found, strict=True):
        assert values == pytest.approx(list(one_by_one(either, tokenizer, example)), rel=1e-5)
    assert found == asked(either, tokenizer, EXAMPLES)
    assert np.concatenate(asked(either, tokenizer, EXAMPLES, 1)) == pytest.approx(np.concatenate(found), rel=1e-5)


def test_which_choice_is_right_is_not_seen(either, tokenizer):
    others = [replace(example, target=example.choices[-1]) for example in EXAMPLES]
    assert asked(either, tokenizer, others) == asked(either, tokenizer, EXAMPLES)


def test_both_accuracies_have_intervals(model, tokenizer):
    scores = quality(model, tokenizer, TASK, SETTINGS, EXAMPLES, 4, 0)
    names = ("accuracy", "normalized_accuracy")
    assert set(scores) == {f"{name}{bound}" for name in names for bound in ("", "_low", "_high")}
    best = [example.choices[int(np.argmax(v))] for example, v in zip(EXAMPLES, asked(model, tokenizer, EXAMPLES))]
    assert scores["accuracy"] == sum(b == e.target for b, e in zip(best, EXAMPLES)) / 3
