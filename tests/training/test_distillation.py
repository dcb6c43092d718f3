import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mcsmoe.params import Distillation
from mcsmoe.training.distillation import HiddenStates, distillation_loss
from tests.shared import GOLDEN, needs_golden


def _settings(**changes) -> Distillation:
    values = {"task": 1.0, "kd": 0.2, "hidden": 0.0, "temperature": 2.0, "normalization": "label-tokens"}
    return Distillation(**{**values, **changes})


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 3, 5, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 5), generator=generator)
    labels[1, 3:] = -100
    labels[2, 1:] = -100
    return student, teacher, labels


def test_label_token_terms_are_the_plain_formula(batch):
    student, teacher, labels = batch
    terms = distillation_loss(student, teacher, labels, _settings())
    s, t = student[labels != -100].double(), teacher[labels != -100].double()
    p = (t / 2).softmax(-1)
    kl = (p * ((t / 2).log_softmax(-1) - (s / 2).log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(terms["kd"].double(), 0.2 * 4 * kl)
    torch.testing.assert_close(terms["task"].double(), F.cross_entropy(s, labels[labels != -100]))
    assert terms["hidden"] == 0
    torch.testing.assert_close(terms["loss"], terms["task"] + terms["kd"])


def test_padding_does_not_count(batch):
    student, teacher, labels = batch
    terms = distillation_loss(student, teacher, labels, _settings())
    other = student.clone()
    other[labels == -100] = 7.0
    for name, value in distillation_loss(other, teacher, labels, _settings()).items():
        torch.testing.assert_close(value, terms[name])


def test_only_the_student_gets_gradients(batch):
    student, teacher, labels = (t.clone() for t in batch)
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(student, teacher, labels, _settings())["loss"].backward()
    assert student.grad is not None
    assert not student.grad[labels == -100].any()
    assert teacher.grad is None


def test_no_label_gives_zero(batch):
    student, teacher, labels = batch
    student = student.clone().requires_grad_()
    terms = distillation_loss(student, teacher, torch.full_like(labels, -100), _settings())
    terms["loss"].backward()
    assert terms["loss"] == 0
    assert torch.isfinite(student.grad).all()


def test_equal_models_have_no_distance(batch):
    student, _, labels = batch
    hidden = [HiddenStates([student], [student], torch.ones(3, 5))]
    terms = distillation_loss(student, student, labels, _settings(hidden=0.1), hidden)
    assert abs(terms["kd"]) < 1e-7
    assert terms["hidden"] == 0
    equal = student.clone().requires_grad_()
    hidden = [HiddenStates([equal], [student], torch.ones(3, 5))]
    reference = distillation_loss(equal, student, labels, _settings(hidden=0.1, normalization="reference"), hidden)
    reference["hidden"].backward()
    assert equal.grad.abs().max() == 0


def test_hidden_loss_counts_real_tokens_and_both_stacks(batch):
    student, teacher, labels = batch
    mask = labels != -100
    layers = [student, 2 * student], [teacher, 2 * teacher]
    stacks = [HiddenStates(*layers, mask), HiddenStates(*layers, torch.ones_like(mask))]
    got = distillation_loss(student, teacher, labels, _settings(hidden=0.1), stacks)["hidden"]
    real = (student - teacher)[mask].square().mean() * (1 + 4) / 2
    everywhere = (student - teacher).square().mean() * (1 + 4) / 2
    torch.testing.assert_close(got, 0.1 * (real + everywhere) / 2)


def test_hidden_states_are_asked_for(batch):
    student, teacher, labels = batch
    with pytest.raises(ValueError, match="hidden states"):
        distillation_loss(student, teacher, labels, _settings(hidden=0.1))


@pytest.fixture(scope="module")
def golden():
    """Outputs of the full model and of the `normal` merge, on the golden batch, from stock model classes."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    root = GOLDEN / "switch"
    config = SwitchTransformersConfig(**json.loads((root / "config.json").read_text()))
    weights = load_file(root / "model.safetensors")
    (merged,) = (root / "merged").glob("normal*.experts.safetensors")
    batch = load_file(root / "batch.safetensors")
    outputs = []
    for state in (weights, {**weights, **load_file(merged)}):
        model = SwitchTransformersForConditionalGeneration(config).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            outputs.append(
                model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    labels=batch["labels"],
                    output_hidden_states=True,
                )
            )
    return batch, *outputs, json.loads((root / "kd" / "kd.json").read_text())


@needs_golden
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_golden_reference_terms(golden, weight):
    batch, teacher, student, expected = golden
    hidden = [
        HiddenStates(student[f"{stack}_hidden_states"][1:], teacher[f"{stack}_hidden_states"][1:], mask)
        for stack, mask in (("encoder", batch["attention_mask"]), ("decoder", batch["labels"] != -100))
    ]
    settings = _settings(hidden=weight, normalization="reference")
    terms = distillation_loss(student.logits, teacher.logits, batch["labels"], settings, hidden)
    values = expected[f"hd_lambda={weight},hd_cos_sim=False"]
    for ours, theirs in {"loss": "loss", "kd": "kd_loss", "task": "task_loss", "hidden": "hd_loss"}.items():
        assert terms[ours].item() == pytest.approx(values[theirs], rel=1e-5, abs=1e-5), ours


@needs_golden
def test_golden_of_equal_models(golden):
    batch, teacher, _, expected = golden
    settings = _settings(normalization="reference")
    terms = distillation_loss(teacher.logits, teacher.logits, batch["labels"], settings)
    values = expected["teacher==student,hd_lambda=0.1"]
    assert terms["task"].item() == pytest.approx(float(values["task_loss"]), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(float(values["kd_loss"]), abs=1e-6)
