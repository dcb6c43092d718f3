"""Products of float32 weights, summed up in float64."""

import pytest
import torch

from mcsmoe.similarity import weights
from mcsmoe.similarity.evidence import cosine
from mcsmoe.similarity.weights import WIDTH, gram


@pytest.mark.parametrize("noise", [10.0, 0.01], ids=["unlike", "alike"])
def test_float32_products_are_as_good_as_float64(noise: float, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(30, 5, WIDTH, generator=generator)
    tensors = [shared + noise * torch.randn(shared.shape, generator=generator) for _ in range(4)]
    monkeypatch.setattr(weights, "CHUNK", 4 * 7 * 5 * WIDTH)
    parts = list(weights._chunks(tensors, torch.float32))
    assert [len(part[0]) for part in parts] == [7, 7, 7, 7, 2]
    flat = torch.stack(tensors).flatten(1).double()
    exact, found = flat @ flat.T, gram(parts)
    assert found.dtype == torch.float64
    assert ((found - exact).abs() <= WIDTH * 2**-24 * (flat.abs() @ flat.abs().T)).all()
    assert (cosine(found) - cosine(exact)).abs().max() < 1e-8
