"""The whole of pruning against a second implementation: float64, plain loops, gradients by hand."""

import itertools
import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mcsmoe.compression.factorise import factorise_model, sparse_parts
from mcsmoe.compression.pruner import Pruner
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from tests.compression.settings import compress

LAYERS = {"encoder.1": 3, "decoder.1": 2}  # experts
D_MODEL, D_FF, TOKENS, STEPS = 5, 8, 4, 20
INITIAL, FINAL, INTERVAL, RATIO, BETA, BETA2 = "0.15", "0.25", 3, "0.3", 0.85, 0.7
RATE, MOMENTUM, DECAY = 0.005, 0.9, 0.05
# By structure: all units of an expert, and the indices of the entries of each, as in its definition.
ENTRIES = {
    "row": lambda out, d: [[(i, j) for j in range(d)] for i in range(out)],
    "column": lambda out, d: [[(i, j) for i in range(out)] for j in range(d)],
    "element": lambda out, d: [[(i, j)] for i in range(out) for j in range(d)],
}


class Layer(torch.nn.Module):
    """`wo` after `wi`, in place of a sparse layer; `decoder.1` leaves its last expert without tokens."""

    experts: Any

    def __init__(self, wi, wo):
        super().__init__()
        self.experts = torch.nn.Module()
        for name, weight in (("wi", wi), ("wo", wo)):
            setattr(self.experts, name, torch.nn.Module())
            getattr(self.experts, name).weight = torch.nn.Parameter(torch.from_numpy(weight))

    def forward(self, x, sizes):
        return self.experts.wo(self.experts.wi(x, sizes), sizes)


def problem(seed=0):
    """Weights [K, out, in] by name, inputs and targets [T, d] and tokens an expert by layer."""
    random = np.random.default_rng(seed)
    weights, data = {}, {}
    for layer, experts in LAYERS.items():
        weights[f"{layer}.wi"] = random.standard_normal((experts, D_FF, D_MODEL)) / 3
        weights[f"{layer}.wo"] = random.standard_normal((experts, D_MODEL, D_FF)) / 3
        sizes = [TOKENS] * experts
        if layer == "decoder.1":
            sizes[-1] = 0
        data[layer] = (random.standard_normal((STEPS, 2, sum(sizes), D_MODEL)), sizes)
    return weights, data


def second_implementation(weights, data, rank, structure, importance, uncertainty):
    """Yields after each step: remaining share, alive units [(weight, expert, unit)], rankings, {weight: S}."""
    factors = {}
    for name, weight in weights.items():
        left, values, right = np.linalg.svd(weight, full_matrices=False)
        u = left[..., :rank] * np.sqrt(values[:, None, :rank])
        v = np.sqrt(values[:, :rank, None]) * right[:, :rank]
        factors[name] = [u, v, weight - u @ v]
    speeds = {name: [np.zeros_like(factor) for factor in each] for name, each in factors.items()}
    entries = {name: ENTRIES[structure](*weight.shape[1:]) for name, weight in weights.items()}
    units = [(n, e, i) for n, w in weights.items() for e in range(len(w)) for i in range(len(entries[n]))]
    alive, average, deviation = set(units), dict.fromkeys(units, 0.0), dict.fromkeys(units, 0.0)
    begin, end = round(float(INITIAL) * STEPS), STEPS - round(float(FINAL) * STEPS)
    for step in range(1, STEPS + 1):
        gradients = gradients_by_hand(factors, data, step - 1)
        for unit in units:
            name, e, i = unit
            s, g = factors[name][2][e], gradients[name][2][e]
            terms = [abs(s[at] * g[at]) if importance == "sensitivity" else abs(s[at]) for at in entries[name][i]]
            score = sum(terms) / len(terms)
            average[unit] = BETA * average[unit] + (1 - BETA) * score
            deviation[unit] = BETA2 * deviation[unit] + (1 - BETA2) * abs(score - average[unit])
            if unit not in alive:
                for at in entries[name][i]:
                    g[at] = 0
        for name, part in itertools.product(factors, range(3)):
            speeds[name][part] = MOMENTUM * speeds[name][part] + gradients[name][part] + DECAY * factors[name][part]
            factors[name][part] = factors[name][part] - RATE * speeds[name][part]
        ranking = {unit: average[unit] * (deviation[unit] if uncertainty else 1) for unit in units}
        if step > begin and (step % INTERVAL == 0 or step >= end):
            ahead = 1 - Fraction(min(step, end) - begin, end - begin)
            share = Fraction(RATIO) + (1 - Fraction(RATIO)) * ahead**3
            count = math.floor(share * len(units) + Fraction(1, 2))
            order = sorted((unit for unit in units if unit in alive), key=lambda unit: -ranking[unit])
            alive = set(order[:count])
        for name, e, i in set(units) - alive:
            for at in entries[name][i]:
                factors[name][2][e][at] = 0
        yield len(alive) / len(units), [u for u in units if u in alive], ranking, {n: f[2] for n, f in factors.items()}


def gradients_by_hand(factors, data, step):
    """Of half the squared error: [∂U, ∂V, ∂S] by weight."""
    found = {name: [np.zeros_like(factor) for factor in each] for name, each in factors.items()}
    for layer, (tokens, sizes) in data.items():
        start = 0
        for e, size in enumerate(sizes):
            x, target = (each[start : start + size] for each in tokens[step])
            start += size
            wi, wo = (factors[f"{layer}.{n}"][0][e] @ factors[f"{layer}.{n}"][1][e] for n in ("wi", "wo"))
            wi, wo = wi + factors[f"{layer}.wi"][2][e], wo + factors[f"{layer}.wo"][2][e]
            error = x @ wi.T @ wo.T - target
            for name, gradient in (("wi", (error @ wo).T @ x), ("wo", error.T @ (x @ wi.T))):
                u, v, _ = factors[f"{layer}.{name}"]
                for part, value in enumerate((gradient @ v[e].T, u[e].T @ gradient, gradient)):
                    found[f"{layer}.{name}"][part][e] = value
    return found


@pytest.mark.parametrize("rank", [1, 0])
@pytest.mark.parametrize("uncertainty", [None, BETA2], ids=["plain", "uncertainty"])
@pytest.mark.parametrize("importance", ["sensitivity", "magnitude"])
@pytest.mark.parametrize("structure", ENTRIES)
def test_every_step_is_the_same(structure, importance, uncertainty, rank):
    weights, data = problem()
    settings = compress(
        rank=rank,
        structure=structure,
        importance=importance,
        uncertainty=uncertainty,
        beta=BETA,
        interval=INTERVAL,
        final_ratio=float(RATIO),
        initial_warmup=float(INITIAL),
        final_warmup=float(FINAL),
    )
    layers = {layer: Layer(weights[f"{layer}.wi"].copy(), weights[f"{layer}.wo"].copy()) for layer in LAYERS}
    model = SimpleNamespace(sparse_mlps=lambda: layers, update_config=lambda: None)
    factorise_model(model, settings, FactorisedLinears.from_factors)
    parts: dict[str, Any] = dict(sparse_parts(model))
    pruner = Pruner(model, settings, STEPS)
    parameters = [p for layer in layers.values() for p in layer.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)

    trace = second_implementation(weights, data, rank, structure, importance, uncertainty)
    for step, (remaining, alive, ranking, sparse) in enumerate(trace, 1):
        optimiser.zero_grad(set_to_none=False)
        for layer, (tokens, sizes) in data.items():
            x, target = torch.from_numpy(tokens[step - 1])
            (layers[layer](x, sizes) - target).square().sum().div(2).backward()
        pruner.before_step()
        optimiser.step()
        pruner.after_step(step)
        assert pruner.remaining == remaining
        for name, part in parts.items():
            places = len(part.values) // len(weights[name])
            owners = [divmod(i, places) for i in pruner._alive[name].nonzero()[:, 0].tolist()]
            assert owners == [(e, i) for weight, e, i in alive if weight == name]
            values = [value for (weight, *_), value in ranking.items() if weight == name]
            wanted = torch.tensor(values, dtype=torch.float64)
            torch.testing.assert_close(pruner._importance[name].ranking, wanted, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(part.dense(), torch.from_numpy(sparse[name]), rtol=1e-10, atol=1e-10)

    assert 0.25 < remaining < 0.35
    pruner.finish(model)
    for name, part in parts.items():
        kept = list(zip(part.unit_expert().tolist(), part.index.tolist()))
        assert kept == [(e, i) for weight, e, i in alive if weight == name]
