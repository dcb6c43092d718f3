import pytest
import torch
from safetensors.torch import load_file

from mcsmoe.training.losses import balance_loss, z_loss
from tests.shared import GOLDEN, needs_golden


def _logits(tokens: int = 20, experts: int = 4) -> torch.Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("loss", [z_loss, balance_loss])
def test_padding_does_not_count(loss):
    logits = _logits()
    mask = torch.ones(20, dtype=torch.long)
    mask[13:] = 0
    padded = logits.clone()
    padded[13:] = 1e3
    torch.testing.assert_close(loss(padded, mask), loss(logits[:13], torch.ones(13)))


@pytest.mark.parametrize("loss", [z_loss, balance_loss])
def test_batch_of_padding_gives_zero_and_finite_gradients(loss):
    logits = _logits().requires_grad_()
    value = loss(logits, torch.zeros(20))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_values():
    uniform = torch.zeros(8, 4)
    torch.testing.assert_close(z_loss(uniform, torch.ones(8)), torch.tensor(4.0).log() ** 2)
    balanced = 50 * torch.eye(4).repeat(2, 1)
    torch.testing.assert_close(balance_loss(balanced, torch.ones(8)), torch.tensor(1.0))
    collapsed = torch.zeros(8, 4)
    collapsed[:, 2] = 50
    torch.testing.assert_close(balance_loss(collapsed, torch.ones(8)), torch.tensor(4.0))


def test_gradient_spreads_the_load():
    logits = torch.zeros(8, 4)
    logits[:, 2] = 1
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(balance_loss(logits, torch.ones(8)), logits)
    assert (gradient[:, 2] > 0).all()
    assert (gradient[:, [0, 1, 3]] < 0).all()


@needs_golden
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_golden(stack):
    """The reference's formulas, over layers concatenated and padding counted, on the tensors it saw."""
    golden = load_file(GOLDEN / "switch" / "forward.safetensors")
    logits = torch.cat([golden[f"{stack}_router_logits.{layer}"].flatten(0, 1) for layer in (1, 3, 5)])
    everything = torch.ones(len(logits))
    torch.testing.assert_close(z_loss(logits, everything), golden[f"{stack}_z_loss"], rtol=1e-5, atol=1e-5)
    examples = torch.cat([golden[f"{stack}_router_logits.{layer}"] for layer in (1, 3, 5)], dim=1)
    balance = torch.stack([balance_loss(example, torch.ones(len(example))) for example in examples]).mean()
    torch.testing.assert_close(balance, golden[f"{stack}_aux_loss"], rtol=1e-5, atol=1e-5)
