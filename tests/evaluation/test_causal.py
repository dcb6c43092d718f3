"""Quality and cost of a decoder-only model, against one row at a time."""

import math

import pytest
import torch

from mcsmoe.evaluation.cost import flops_per_token
from mcsmoe.evaluation.generation import generate
from mcsmoe.evaluation.quality import likelihood, quality
from mcsmoe.params import TokenizerSection
from mcsmoe.tasks.task import TASKS, Encoded, Example
from mcsmoe.tasks.tokenizer import train_tokenizer
from tests.causal import TOP_K, VOCABULARY, rows, tiny_mixtral
from tests.tasks.settings import settings


@pytest.fixture(scope="module")
def model():
    return tiny_mixtral()


@pytest.fixture(scope="module")
def tokenizer():
    words = " ".join(f"w{i}" for i in range(VOCABULARY))
    return train_tokenizer([words], TokenizerSection(kind="word", vocab_size=VOCABULARY))


@torch.no_grad()
def test_likelihood_is_the_models_own_loss_row_by_row(model):
    losses, tokens, right, whole = 0.0, 0, 0, 0
    for row in rows():
        ids = torch.tensor([[*row.source, *row.target]])
        labels = ids.clone()
        labels[:, : len(row.source)] = -100  # the model shifts them itself
        found = model(input_ids=ids, labels=labels)
        losses += len(row.target) * float(found.loss)
        tokens += len(row.target)
        hits = found.logits[0, len(row.source) - 1 : -1].argmax(-1) == torch.tensor(row.target)
        right += int(hits.sum())
        whole += bool(hits.all())
    found = likelihood(model, rows(), 0, batch_size=3)
    assert found.cross_entropy == pytest.approx(losses / tokens, rel=1e-5)
    assert found.accuracy == right / tokens
    assert found.sequence_accuracy == whole / len(rows())


def test_a_batch_is_generated_as_its_rows_are(model, tokenizer):
    alone = [generate(model, tokenizer, [row], 1, 6)[0] for row in rows()]
    assert len(set(alone)) > 1
    assert len({len(row.source) for row in rows()}) > 1
    assert generate(model, tokenizer, rows(), 4, 6) == alone


@torch.no_grad()
def test_generated_text_is_greedy_and_without_the_prompt(model, tokenizer):
    row = rows()[0]
    ids = list(row.source)
    for _ in range(5):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    expected = tokenizer.decode(ids[len(row.source) :], skip_special_tokens=True)
    assert generate(model, tokenizer, [row], 1, 5) == [expected]
    assert generate(model, tokenizer, [Encoded(row.source, [1])], 1, 5) == [expected]


@pytest.mark.parametrize("experts", ["grouped_mm", "eager"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flops_do_not_depend_on_the_kernels(experts, attention):
    model = tiny_mixtral()
    model.set_experts_implementation(experts)
    model.set_attn_implementation(attention)
    row, c = Encoded([5, 6, 7], [8, 9, 1]), model.config
    tokens = len(row.source) + len(row.target) - 1  # nothing is predicted from the last one
    d, heads = c.hidden_size, c.num_attention_heads
    keys = d * c.num_key_value_heads // heads
    weights = 2 * d * d + 2 * d * keys + d * c.num_local_experts + TOP_K * 3 * d * c.intermediate_size
    layer = 2 * tokens * weights + 4 * tokens * tokens * d
    expected = (c.num_hidden_layers * layer + 2 * tokens * d * VOCABULARY) / tokens
    assert flops_per_token(model, [row], 0) == pytest.approx(expected)


def test_perplexity_of_packed_text(model, tokenizer):
    task = settings(name="lm", max_source_length=8)
    examples = [Example(text, text) for text in ("w1 w2 w3 w4 w5 w6", "w7 w8 w9 w1 w2")]
    scores = quality(model, tokenizer, TASKS["lm"], task, examples, 8, 0)
    found = likelihood(model, TASKS["lm"].encode(tokenizer, examples, task, 0), 0, 8)
    assert {name: value for name, value in scores.items() if not name.endswith(("_low", "_high"))} == {
        "perplexity": math.exp(found.cross_entropy),
        "cross_entropy": found.cross_entropy,
        "accuracy": found.accuracy,
    }
    assert scores["perplexity_low"] < scores["perplexity"] < scores["perplexity_high"]
