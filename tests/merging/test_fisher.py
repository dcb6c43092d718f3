from dataclasses import replace

import pytest
import torch

from mcsmoe.merging.rules import RULES
from tests.alignment.experts import GATED
from tests.merging.members import group, make_layer, random_experts


@pytest.mark.parametrize("rule", ["fisher", "exact-fisher"])
def test_against_the_formula_element_by_element(rule: str):
    experts = random_experts(GATED, 3)
    members = group(experts, make_layer(GATED), weights=[0.1, 0.5, 0.2])
    information = members.fisher(rule)
    information[1]["w1"][2:5] = 0  # nobody learned anything of these from expert 1
    for each in information:
        each["w2"][:, 3] = 0  # nor of these from anyone
        each["w1"][0] *= 1e-30
    found = RULES[rule](replace(members, fisher={rule: information}.__getitem__))
    for name in GATED:
        weights = torch.stack([e[name].double().flatten() for e in experts])
        shares = torch.stack([f[name].double().flatten() for f in information])
        for i, value in enumerate(found[name].double().flatten()):
            w, f = weights[:, i], shares[:, i]
            expected = float(f @ w / f.sum()) if f.sum() > 0 else float(w.mean())
            assert float(value) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_two_rules_read_different_information():
    members = group(random_experts(GATED, 2), make_layer(GATED))
    assert not torch.equal(RULES["fisher"](members)["w1"], RULES["exact-fisher"](members)["w1"])
