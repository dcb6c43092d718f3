"""How far sums of float32 products are from float64 ones: within the bound of `sums.CHUNK`, and usually far less."""

from typing import cast

import pytest
import torch
from torch import Tensor

from mcsmoe.calibration.collect import accumulate, add_outputs
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.calibration.sums import CHUNK, ROUNDING, fault
from mcsmoe.families import Expert, Role, Routing
from mcsmoe.families.experts import forward
from tests.merging.members import make_layer

E, K, D, F, T = 6, 2, 24, 16, 5000
BOUND = CHUNK * 2**-24
USUAL = 1e-6
"""The largest difference that was seen, with room to spare; like `BOUND`, relative to the sum of absolute values."""
LAYER = make_layer({"wi": Role.UP, "wo": Role.DOWN}, D, F, E, K)
DTYPES = [torch.float32, torch.bfloat16]


def sample(dtype: torch.dtype) -> tuple[Tensor, Routing]:
    """Tokens whose mean is not zero, some of them large, and their routing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, D, generator=generator).exp() + 0.3
    logits = torch.randn(T, E, generator=generator)
    gates, index = logits.softmax(-1).topk(K)
    return x.to(dtype), Routing(logits.to(dtype), index, gates.to(dtype), norms=x[:, :K].abs())


def collected(x: Tensor, routing: Routing, at_once: int) -> LayerStatistics:
    sums = LayerStatistics.zeros(E, D, ["input-gram", "norms"])
    for start in range(0, T, at_once):
        part = {k: v[start : start + at_once] for k, v in vars(routing).items() if v is not None}
        accumulate(sums, LAYER, x[start : start + at_once], Routing(**part), lambda e: cast(Expert, None))
    return sums


def exact(x: Tensor, routing: Routing) -> dict[str, tuple[Tensor, Tensor]]:
    """Each sum in float64, and the same sum of absolute values."""
    x, logits, gates = x.double(), routing.logits.double(), routing.gates.double()
    chosen = torch.zeros(T, E, dtype=torch.float64).scatter_(1, routing.index, 1)
    assert routing.norms is not None
    norms = routing.norms.double()
    pairs = {
        "coselection": (chosen, chosen),
        "logits_gram": (logits, logits),
        "input_gram": (x, x),
        "input_sums": (chosen, x),
        "input_abs_sums": (chosen, x.abs()),
        "input_square_sums": (chosen, x.square()),
        "gates": (torch.zeros_like(chosen).scatter_(1, routing.index, gates), torch.ones(T, dtype=torch.float64)),
        "norms": (torch.zeros_like(chosen).scatter_(1, routing.index, norms), torch.ones(T, dtype=torch.float64)),
    }
    return {name: (a.T @ b, a.abs().T @ b.abs()) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_within_the_bound(dtype: torch.dtype):
    x, routing = sample(dtype)
    found = collected(x, routing, T).tensors()
    for name, (value, mass) in exact(x, routing).items():
        difference = (found[name] - value).abs()
        assert (difference <= BOUND * mass).all(), name
        assert (difference <= USUAL * mass).all(), name
    assert torch.equal(found["coselection"], exact(x, routing)["coselection"][0])
    assert BOUND < ROUNDING / 3  # what `fault` allows for, of both sides of a comparison and of a square
    assert fault(found) is None


@pytest.mark.parametrize("at_once", [7, CHUNK + 1])
def test_batches_change_sums_by_no_more_than_the_bound(at_once: int):
    x, routing = sample(torch.float32)
    found, reference = collected(x, routing, at_once).tensors(), collected(x, routing, T).tensors()
    for name, (_, mass) in exact(x, routing).items():
        assert ((found[name] - reference[name]).abs() <= 2 * USUAL * mass).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_outputs_are_within_the_bound(dtype: torch.dtype):
    x, _ = sample(dtype)
    generator = torch.Generator().manual_seed(1)
    experts = [
        {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in LAYER.shapes().items()}
        for _ in range(E)
    ]
    sums = LayerStatistics.zeros(E, D, ["outputs"])
    add_outputs(sums, LAYER, x, experts.__getitem__)
    y = torch.stack([forward(each, LAYER.layout, LAYER.activation, x) for each in experts]).double().flatten(1)
    assert sums.output_gram is not None
    assert ((sums.output_gram - y @ y.T).abs() <= BOUND * (y.abs() @ y.abs().T)).all()
    assert ((sums.output_gram - y @ y.T).abs() <= USUAL * (y.abs() @ y.abs().T)).all()
