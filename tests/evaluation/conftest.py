"""A tiny Switch with random weights, its tokenizer, and a few examples of the built-in task."""

import pytest
import torch

from mcsmoe.params import TaskSection, TokenizerSection
from mcsmoe.tasks.task import TASKS, Encoded, Example
from mcsmoe.tasks.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def settings() -> TaskSection:
    return TaskSection(
        name="skills",
        data=None,
        hub=None,
        subset=None,
        column=None,
        revision=None,
        max_source_length=16,
        max_target_length=10,
        selection=10,
        train_limit=200,
    )


@pytest.fixture(scope="session")
def examples(settings) -> list[Example]:
    return TASKS["skills"].examples(settings, "test")[:20]


@pytest.fixture(scope="session")
def tokenizer(settings):
    texts = [text for e in TASKS["skills"].examples(settings, "train") for text in (e.source, e.target)]
    return train_tokenizer(texts, TokenizerSection(kind="word", vocab_size=200))


@pytest.fixture(scope="session")
def rows(tokenizer, examples, settings) -> list[Encoded]:
    return TASKS["skills"].encode(tokenizer, examples, settings, 0)


@pytest.fixture(scope="session")
def model(tokenizer):
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=4,
        decoder_start_token_id=0,
        expert_capacity=100,
        initializer_factor=1.0,
    )
    torch.manual_seed(0)
    return SwitchTransformersForConditionalGeneration(config).eval()
