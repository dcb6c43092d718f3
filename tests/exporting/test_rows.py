"""Router rows, compared with brute force on a router small enough for it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mcsmoe.errors import CheckpointError, UnknownNameError
from mcsmoe.exporting import routers as registry
from mcsmoe.exporting.routers import ROWS, STRENGTH, RouterData, agreement, objective

MEMBERS, DOMINANTS = ((0, 2, 5), (1,), (3, 4)), (2, 1, 3)
TOKENS, WIDTH = 300, 12


def router(*, bias: bool = False, dropped: bool = False, tokens: int = TOKENS) -> RouterData:
    """Six experts in three groups, the second of them alone; `dropped` takes expert 5 out."""
    generator = torch.Generator().manual_seed(0)
    rows, inputs = (torch.randn(n, WIDTH, generator=generator) for n in (6, tokens))
    if bias:
        rows[:, -1] *= 3
        inputs[:, -1] = 1
    members = ((0, 2), *MEMBERS[1:]) if dropped else MEMBERS
    logits = inputs @ rows.T
    best = logits.argmax(1, keepdim=True)
    return RouterData("decoder.1", rows, inputs, logits, (best, torch.ones_like(best)), members, DOMINANTS)


def targets(data: RouterData) -> Tensor:
    return torch.stack([data.logits[:, list(group)].double().exp().sum(1).log() for group in data.members], 1)


def test_dominant_is_the_rows_themselves():
    data = router(bias=True)
    assert ROWS["dominant"](data).float().equal(data.rows[[2, 1, 3]])
    half = replace(data, rows=data.rows.bfloat16())
    assert ROWS["dominant"](half).bfloat16().equal(half.rows[[2, 1, 3]])


@pytest.mark.parametrize("data", [router(), router(bias=True), router(dropped=True), router(tokens=5)])
def test_ridge_is_least_squares_with_a_penalty(data: RouterData):
    x, start = data.inputs.double(), data.rows[list(DOMINANTS)].double()
    strength = STRENGTH * (x**2).sum() / WIDTH
    stacked = torch.cat([x, strength.sqrt() * torch.eye(WIDTH, dtype=torch.float64)])
    wanted = torch.cat([targets(data), strength.sqrt() * start.T])
    expected = torch.linalg.lstsq(stacked, wanted).solution.T
    torch.testing.assert_close(ROWS["ridge"](data), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(ROWS["ridge"](data)[1].float(), data.rows[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("data", [router(), router(bias=True), router(dropped=True)])
def test_cross_entropy_finds_the_minimum(data: RouterData):
    losses = {name: objective(data, ROWS[name](data))[0] for name in ROWS}
    assert losses["cross-entropy"] < losses["ridge"] < losses["dominant"]
    assert objective(data, ROWS["cross-entropy"](data))[1].abs().max() < 1e-7


def test_the_objective_is_the_cross_entropy_of_summed_probabilities():
    data = router()
    rows = ROWS["dominant"](data).requires_grad_()
    probabilities = data.logits.double().softmax(1)
    summed = torch.stack([probabilities[:, list(group)].sum(1) for group in data.members], 1)
    expected = -(summed * (data.inputs.double() @ rows.T).log_softmax(1)).sum(1).mean()
    (slope,) = torch.autograd.grad(expected, rows)
    loss, found = objective(data, rows.detach())
    assert loss == pytest.approx(expected.item(), abs=1e-9)
    torch.testing.assert_close(found, slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", list(ROWS))
def test_chunks_change_nothing_and_neither_does_another_run(name: str, monkeypatch: pytest.MonkeyPatch):
    whole = ROWS[name](router())
    assert whole.dtype == torch.float64
    assert whole.equal(ROWS[name](router()))
    monkeypatch.setattr(registry, "CHUNK", 64)
    torch.testing.assert_close(ROWS[name](router()), whole, rtol=0, atol=1e-7)


def test_agreement_counts_tokens():
    data = router(dropped=True)
    rows = ROWS["dominant"](data)
    label = {e: k for k, group in enumerate(data.members) for e in group}
    same = 0
    for x, logits in zip(data.inputs, data.logits):
        best = max(label, key=lambda e: float(logits[e]))
        same += label[best] == int((rows @ x.double()).argmax())
    first = (data.inputs.double() @ rows.T).argmax(1, keepdim=True)
    assert agreement(data, (first, torch.ones_like(first))) == pytest.approx(same / TOKENS)
    assert 0 < same < TOKENS


def test_agreement_weighs_gates():
    """Experts 0 and 1 of group 0 have gates 0.6 and 0.4 by all rows; the stock router gives group 0 only 0.7."""
    data = router()
    (first, second), chosen = data.members[0][:2], torch.ones(TOKENS, 1)
    data = replace(data, chosen=(torch.tensor([[first, second]] * TOKENS), chosen * torch.tensor([0.6, 0.4])))
    stock = torch.tensor([[0, 1]] * TOKENS), chosen * torch.tensor([1.4, 0.6])  # not scaled to 1
    assert agreement(data, stock) == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["ridge", "cross-entropy"])
def test_a_router_that_is_not_linear(name: str):
    data = router()
    with pytest.raises(CheckpointError, match=r"decoder\.1: logits .* differ .* take those of 'dominant'"):
        ROWS[name](replace(data, logits=data.logits.tanh()))


def test_unknown_rule():
    with pytest.raises(UnknownNameError, match="unknown source of router rows 'mean'; known: cross-entropy, dominant"):
        ROWS["mean"]
