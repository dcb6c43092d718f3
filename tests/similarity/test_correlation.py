"""Correlations of hidden neurons against their definition on the tokens themselves."""

from itertools import combinations
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mcsmoe.calibration.watch import watch
from mcsmoe.families import MoELayer, Routing, family_of
from mcsmoe.families.experts import expert_in_memory, hidden
from mcsmoe.similarity import correlation
from mcsmoe.similarity.correlation import PairMoments, assigned, best, measure_correlations
from tests.calibration.samples import batches, exact_switch, samples


def correlations(z: Tensor, u: Tensor) -> Tensor:
    """[f, f] of the columns of z and u [n, f]; as in the reference, an epsilon is added to what is divided by."""
    f = z.shape[1]
    covariance = torch.cov(torch.cat([z, u], 1).T)[:f, f:]
    return covariance / (torch.outer(z.std(0), u.std(0)) + 1e-7)


def measure(model: Any, parts: list[dict[str, Tensor]], **options: Any) -> dict[str, dict[str, Tensor]]:
    family = family_of(model.config)
    return measure_correlations(model, family, family.layers(model.config), parts, **options)


def assert_equal(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> None:
    for layer in a:
        for name in a[layer]:
            torch.testing.assert_close(a[layer][name], b[layer][name], rtol=0, atol=1e-10)


def test_against_the_definition_on_the_tokens():
    model, parts = exact_switch(), batches(samples(), len(samples()))
    tokens: dict[str, tuple[MoELayer, Tensor, Tensor]] = {}

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        tokens[layer.name] = (layer, x, routing.index[:, 0])

    family = family_of(model.config)
    watch(model, family, family.layers(model.config), parts, see)
    found = measure(model, batches(samples(), 2))
    for layer, x, chosen in tokens.values():
        for i, j in combinations(range(layer.experts), 2):
            either = x[(chosen == i) | (chosen == j)]
            if len(either) < 2:
                continue
            pair = (expert_in_memory(model, layer, e) for e in (i, j))
            z, u = (hidden(expert, layer.layout, layer.activation, either).detach() for expert in pair)
            rho = correlations(z, u)
            rows, columns = linear_sum_assignment(rho.numpy(), maximize=True)
            for name, value in {
                "correlation.lsa": rho[rows, columns].mean(),
                "correlation.max": rho.max(0).values.mean(),
            }.items():
                for place in ((i, j), (j, i)):
                    assert float(found[layer.name][name][place]) == pytest.approx(float(1 + value) / 2, abs=1e-9)


def test_blocks_and_chunks_change_nothing(monkeypatch):
    model, parts = exact_switch(num_experts=4), batches(samples(), 3)
    whole = measure(model, parts)
    assert_equal(measure(model, parts, block_bytes=1), whole)
    assert_equal(measure(model, parts, block_bytes=5 * 8 * model.config.d_ff**2), whole)
    monkeypatch.setattr(correlation, "CHUNK", 2)
    assert_equal(measure(model, parts), whole)


def test_processes_share_the_sample():
    model, parts = exact_switch(num_experts=4), batches(samples(), 1)
    theirs: list[Tensor] = []

    def give(value: Tensor) -> Tensor:
        theirs.append(value)
        return value

    measure(model, parts[1::2], reduce=give)
    other = iter(theirs)
    assert_equal(measure(model, parts[::2], reduce=lambda value: value + next(other)), measure(model, parts))


def test_a_token_that_selects_both_experts_counts_once():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(3, 30, 4, generator=generator, dtype=torch.float64)  # experts, tokens, neurons
    chosen = torch.zeros(30, 3, dtype=torch.bool)
    chosen.scatter_(1, torch.rand(30, 3, generator=generator).topk(2).indices, True)
    moments = PairMoments.zeros(torch.triu_indices(3, 3, 1), 4)
    for e in range(3):
        rows = chosen[:, e]
        moments.add(e, chosen[rows], z[:, rows].__getitem__)
    for (i, j), found in zip(moments.pairs.T.tolist(), moments.correlations()):
        either = chosen[:, i] | chosen[:, j]
        torch.testing.assert_close(found, correlations(z[i][either], z[j][either]), rtol=0, atol=1e-12)


def test_matched_neurons_and_best_neurons():
    rho = torch.tensor([[0.9, 0.8, -1.0], [0.0, -0.6, -0.5], [0.1, 0.2, 0.3]])
    assert assigned(rho) == pytest.approx((1 + (0.8 + 0.0 + 0.3) / 3) / 2)
    assert best(rho) == pytest.approx((1 + (0.9 + 0.8 + 0.3) / 3) / 2)
