"""Experts that are noisy copies of prototypes, their hidden neurons shuffled: who belongs together is known."""

import pytest
import torch
from torch import Tensor

from mcsmoe.similarity.evidence import Evidence, similarity
from tests.calibration.samples import batches, exact_switch, samples
from tests.similarity.evidence import whole_evidence

PROTOTYPE = torch.tensor([0, 1, 2, 3, 2, 0, 3, 1])
NOISE = 0.1
FINDS = ["expert-output", "expert-output.mean"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> list[Evidence]:
    model = exact_switch()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for block in [model.encoder.block[1].layer[1], model.decoder.block[3].layer[2]]:
            experts = block.mlp.experts
            for name in ("wi", "wo"):
                originals = [getattr(experts[f"expert_{e}"], name).weight.clone() for e in range(4)]
                for e, p in enumerate(PROTOTYPE.tolist()):
                    noise = torch.randn(originals[p].shape, generator=generator, dtype=torch.float64)
                    weight = originals[p] + NOISE * originals[p].std() * noise
                    getattr(experts[f"expert_{e}"], name).weight.copy_(weight)
            for e in range(8):
                order = torch.randperm(model.config.d_ff, generator=generator)
                expert = experts[f"expert_{e}"]
                expert.wi.weight.copy_(expert.wi.weight[order])
                expert.wo.weight.copy_(expert.wo.weight[:, order])
    evidence = whole_evidence(model, batches(samples(12), 6), tmp_path_factory.mktemp("gradients"))
    return [each for each in evidence if each.layer.name in ("encoder.1", "decoder.3")]


def partners(s: Tensor) -> list[int]:
    """The other expert that each is most like."""
    return s.clone().fill_diagonal_(-1).argmax(1).tolist()


@pytest.mark.parametrize("name", FINDS)
def test_outputs_find_copies_whatever_the_order_of_hidden_neurons(name: str, planted: list[Evidence]):
    expected = partners((PROTOTYPE[:, None] == PROTOTYPE).double())
    for evidence in planted:
        assert partners(similarity(name)(evidence)) == expected


def test_weights_do_not_find_them_once_shuffled(planted: list[Evidence]):
    """What the two above are there for: the plant would be no test if neurons kept their places."""
    expected = partners((PROTOTYPE[:, None] == PROTOTYPE).double())
    for evidence in planted:
        assert partners(similarity("weight")(evidence)) != expected
