"""The fine-tuning and distillation losses on a real, tiny Switch model."""

import torch

from mcsmoe.families import family_of
from mcsmoe.params import Distillation, Finetune
from mcsmoe.tasks.batches import IGNORED, collate
from mcsmoe.tasks.task import Encoded, Example
from mcsmoe.training.distillation import TeacherLoss
from mcsmoe.training.finetune import FullLoss
from mcsmoe.training.losses import balance_loss, z_loss
from mcsmoe.training.start import start_model
from tests.training.test_start import CONFIG, model

FINETUNE = Finetune(
    epochs=1,
    batch_size=4,
    learning_rate=0.1,
    weight_decay=0.0,
    warmup_steps=0,
    max_grad_norm=1.0,
    router_z_loss=0.5,
    balance_loss=0.25,
    evaluations=1,
)
BATCH = collate([Encoded([35, 36, 37, 1], [35, 1]), Encoded([36, 1], [36, 35, 1])], pad=0, causal=False)


def small():
    torch.manual_seed(0)
    sparse = {
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    }
    examples = [Example("reverse 1 2", "2 1")]
    return start_model(model(config=CONFIG | sparse | {"dropout_rate": 0.0}), examples)[0].eval()


def test_router_losses_are_means_over_layers_of_real_tokens():
    switch = small()
    family = family_of(switch.config)
    layers = family.layers(switch.config)
    loss = FullLoss(family, layers, FINETUNE)
    with loss.watching(switch):
        terms = loss(switch, BATCH)
    out = switch(**BATCH, output_router_logits=True)
    pairs = [
        (out.encoder_router_logits[0].flatten(0, 1), BATCH["attention_mask"].flatten()),
        (out.decoder_router_logits[0].flatten(0, 1), (BATCH["labels"] != IGNORED).flatten()),
    ]
    z = sum(z_loss(*pair) for pair in pairs) / 2
    balance = sum(balance_loss(*pair) for pair in pairs) / 2
    logits = switch(**BATCH).logits
    task = torch.nn.functional.cross_entropy(logits.flatten(0, 1), BATCH["labels"].flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["loss"], task + 0.5 * z + 0.25 * balance)


def test_watching_ends_with_its_context():
    switch = small()
    family = family_of(switch.config)
    loss = FullLoss(family, family.layers(switch.config), FINETUNE)
    with loss.watching(switch):
        pass
    assert not any(module._forward_hooks for module in switch.modules())


def test_hidden_states_of_equal_models_cost_nothing():
    settings = Distillation(task=0.0, kd=1.0, hidden=1.0, temperature=2.0, normalization="label-tokens")
    terms = TeacherLoss(small(), settings)(small(), BATCH)
    assert abs(terms["loss"].item()) < 1e-6
