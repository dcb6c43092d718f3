"""Averaged pairs of gated experts with biases against experts whose weights are averaged."""

import pytest
import torch

from mcsmoe.calibration import collect as every_expert
from mcsmoe.calibration.collect import add_outputs, add_pair_errors
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.families import Expert, MoELayer, Role
from mcsmoe.families.experts import forward
from tests.merging.members import make_layer

E, D, F, T = 4, 5, 7, 23
SHAPES = {
    Role.GATE: (F, D),
    Role.UP: (F, D),
    Role.GATE_BIAS: (F,),
    Role.UP_BIAS: (F,),
    Role.DOWN: (D, F),
    Role.DOWN_BIAS: (D,),
}
PLAIN = {"wi": Role.UP, "wo": Role.DOWN}
GATED = {role.value: role for role in SHAPES}


def random_experts(layer: MoELayer) -> list[Expert]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            name: torch.randn(SHAPES[role], generator=generator, dtype=torch.float64)
            for name, role in layer.layout.items()
        }
        for _ in range(E)
    ]


@pytest.mark.parametrize(("layout", "activation"), [(PLAIN, "relu"), (GATED, "silu")])
def test_against_experts_with_averaged_weights(layout, activation, monkeypatch):
    layer = make_layer(layout, D, F, E, 2, activation)
    experts = random_experts(layer)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, D, generator=generator, dtype=torch.float64)
    chosen = torch.zeros(T, E, dtype=torch.bool)
    chosen.scatter_(1, torch.rand(T, E - 1, generator=generator).topk(2).indices, True)  # the last one is dead

    def run(expert: Expert, tokens: torch.Tensor) -> torch.Tensor:
        return forward(expert, layout, layer.activation, tokens)

    errors = torch.zeros(E, E, dtype=torch.float64)
    for i in range(E):
        for j in range(E):
            pair = {name: (experts[i][name] + experts[j][name]) / 2 for name in layout}
            mine = x[chosen[:, i]]
            errors[i, j] = (run(experts[i], mine) - run(pair, mine)).square().sum()
    outputs = torch.stack([run(expert, x) for expert in experts])

    for size in (every_expert.TOKENS, 3):
        monkeypatch.setattr(every_expert, "TOKENS", size)
        sums = LayerStatistics.zeros(E, D, ["outputs", "pair-errors"])
        add_outputs(sums, layer, x, experts.__getitem__)
        add_pair_errors(sums, layer, x, chosen, experts.__getitem__)
        torch.testing.assert_close(sums.pair_errors, errors)
        torch.testing.assert_close(sums.all_outputs, outputs.sum(1))
        torch.testing.assert_close(sums.output_gram, torch.einsum("itd,jtd->ij", outputs, outputs))
        assert sums.pair_errors is not None
        assert not sums.pair_errors.diagonal().any()  # exactly: an expert averaged with itself is itself
        assert not sums.pair_errors[-1].any()
        assert sums.pair_errors[0, -1] > 0
