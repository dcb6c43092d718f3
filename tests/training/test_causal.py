"""Losses and training of a decoder-only model, against sums by hand."""

import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from mcsmoe.errors import ParameterError
from mcsmoe.params import Distillation, Training
from mcsmoe.tasks.batches import collate, is_causal
from mcsmoe.tasks.task import Example
from mcsmoe.training.distillation import TeacherLoss
from mcsmoe.training.finetune import FullLoss
from mcsmoe.training.loop import Fit
from mcsmoe.training.losses import balance_loss, z_loss
from mcsmoe.training.start import check_model, start_model
from tests.causal import FAMILY, rows, tiny_mixtral
from tests.training.test_full import FINETUNE
from tests.training.test_start import model as model_settings

BATCH = collate(rows(), 0, causal=True)
TOKENS = torch.tensor(sum(len(row.target) for row in rows()))
CONFIG = {
    "model_type": "mixtral",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
}


def outputs(model, row):
    """What the model computes for one row, alone: all positions that run."""
    ids = torch.tensor([[*row.source, *row.target[:-1]]])
    return model(input_ids=ids, output_hidden_states=True, output_router_logits=True)


def test_distillation_is_a_mean_over_targets_and_hidden_states_count_prompts():
    student, teacher = tiny_mixtral(), tiny_mixtral(seed=1)
    settings = Distillation(task=1.0, kd=0.5, hidden=0.25, temperature=2.0, normalization="label-tokens")
    with torch.no_grad():
        terms = TeacherLoss(teacher, settings)(student, BATCH)
    task, kd, hidden, positions = 0.0, 0.0, 0.0, 0
    with torch.no_grad():
        for row in rows():
            ours, theirs = outputs(student, row), outputs(teacher, row)
            start = len(row.source) - 1
            log_p = ours.logits[0, start:].log_softmax(-1)
            task += float(-sum(log_p[i, token] for i, token in enumerate(row.target)))
            q = (theirs.logits[0, start:] / 2).softmax(-1)
            kd += 4 * float((q * (q.log() - (ours.logits[0, start:] / 2).log_softmax(-1))).sum())
            pairs = list(zip(ours.hidden_states[1:], theirs.hidden_states[1:], strict=True))
            hidden += float(sum((a - b).square().mean(-1).sum() for a, b in pairs)) / len(pairs)
            positions += ours.logits.shape[1]
    assert float(terms["task"]) == pytest.approx(task / int(TOKENS), rel=1e-4)
    assert float(terms["kd"]) == pytest.approx(0.5 * kd / int(TOKENS), rel=1e-4)
    assert float(terms["hidden"]) == pytest.approx(0.25 * hidden / positions, rel=1e-4)


def test_router_losses_count_prompts_and_no_padding():
    model = tiny_mixtral()
    loss = FullLoss(FAMILY, FAMILY.layers(model.config), FINETUNE)
    with loss.watching(model):
        terms = loss(model, BATCH)
    alone = [outputs(model, row) for row in rows()]
    layers = [torch.cat([each.router_logits[i] for each in alone]) for i in range(2)]
    ones = torch.ones(len(layers[0]))
    torch.testing.assert_close(terms["router_z"], sum(z_loss(each, ones) for each in layers) / 2)
    torch.testing.assert_close(terms["balance"], sum(balance_loss(each, ones) for each in layers) / 2)
    losses = [
        F.cross_entropy(each.logits[0, len(row.source) - 1 :], torch.tensor(row.target), reduction="sum")
        for each, row in zip(alone, rows(), strict=True)
    ]
    torch.testing.assert_close(terms["task"], sum(losses) / TOKENS)


def test_a_training_learns():
    model = tiny_mixtral()
    settings = Training(
        epochs=15, batch_size=4, learning_rate=0.01, weight_decay=0.0, warmup_steps=0, max_grad_norm=1.0
    )
    loss = FullLoss(FAMILY, FAMILY.layers(model.config), FINETUNE)
    fit = Fit(
        model=model,
        settings=settings,
        epoch=lambda number: rows(),
        loss=loss,
        pad=0,
        causal=True,
        seed=0,
        accelerator=Accelerator(cpu=True),
    )
    with loss.watching(model):
        fit.run("test")
    assert fit.curve[-1]["task"] < 0.5 * fit.curve[0]["task"]


def test_a_model_from_nothing_begins_with_the_end_token():
    settings = model_settings(config=CONFIG, tokenizer={"kind": "bpe", "vocab_size": 300})
    made, tokenizer = start_model(settings, [Example("reverse 1 2", "2 1")])
    assert is_causal(made)
    config = made.config
    assert (config.vocab_size, config.pad_token_id, config.eos_token_id, config.bos_token_id) == (
        len(tokenizer),
        0,
        1,
        1,
    )
    assert not hasattr(config, "decoder_start_token_id")


def test_what_the_tokenizer_decides_is_refused():
    with pytest.raises(ParameterError, match=r"^config\.bos_token_id = 3: .*set by the tokenizer"):
        check_model(model_settings(config=CONFIG | {"bos_token_id": 3}))
