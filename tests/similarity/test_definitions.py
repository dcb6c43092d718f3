"""Each basis against the vectors that it says it compares, of one layer of a small model and its tokens."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.calibration.watch import watch
from mcsmoe.families import Expert, MoELayer, Role, Routing, TensorSource, family_of
from mcsmoe.families.experts import forward, read_expert
from mcsmoe.similarity import weights as gram
from mcsmoe.similarity.evidence import Evidence, similarity
from tests.calibration.samples import batches, exact_switch, samples
from tests.merging.members import make_layer
from tests.similarity.evidence import whole_evidence


@dataclass(frozen=True)
class Seen:
    """A layer as it is: tokens x [T, d], their routing, and the weights."""

    x: Tensor
    routing: Routing
    router: Tensor
    experts: list[Expert]
    gradients: list[Expert]
    evidence: Evidence

    def of(self, e: int) -> Tensor:
        """The tokens routed to expert e."""
        return self.x[(self.routing.index == e).any(1)]


def all_of(expert: Expert) -> Tensor:
    return torch.cat([value.flatten() for value in expert.values()])


VECTORS = {
    "router-logits": lambda s, e: s.routing.logits[:, e],
    "router-weight": lambda s, e: s.router[e],
    "router-weight-feature": lambda s, e: s.router[e] * s.x.norm(dim=0),
    "feature": lambda s, e: s.of(e).mean(0),
    "feature.abs": lambda s, e: s.of(e).abs().mean(0),
    "weight": lambda s, e: all_of(s.experts[e]),
    "weight-feature": lambda s, e: (s.experts[e]["wi"] * s.of(e).norm(dim=0)).flatten(),
    "gradient": lambda s, e: all_of(s.gradients[e]),
    "weight-gradient": lambda s, e: all_of(s.experts[e]) * all_of(s.gradients[e]),
    "expert-output": lambda s, e: outputs(s, e).flatten(),
    "expert-output.mean": lambda s, e: outputs(s, e).mean(0),
}


def outputs(seen: Seen, e: int) -> Tensor:
    layer = seen.evidence.layer
    return forward(seen.experts[e], layer.layout, layer.activation, seen.x)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    """The second sparse layer of the encoder, all of whose experts have tokens."""
    model, parts = exact_switch(), batches(samples(12), 12)
    evidence = whole_evidence(model, parts, tmp_path_factory.mktemp("gradients"))[1]
    layer = evidence.layer
    assert (evidence.statistics.counts > 0).all()
    assert evidence.gradients is not None
    found: list[tuple[Tensor, Routing]] = []

    def see(layer: MoELayer, x: Tensor, routing: Routing) -> None:
        found.append((x, routing))

    watch(model, family_of(model.config), [layer], parts, see)
    ((x, routing),) = found
    router = evidence.source.tensor(layer.router_weight)
    experts = [read_expert(evidence.source, layer, e) for e in range(layer.experts)]
    gradients = [evidence.gradients.read("gradient", layer, e) for e in range(layer.experts)]
    return Seen(x, routing, router, experts, gradients, evidence)


@pytest.mark.parametrize("chunk", [gram.CHUNK, 1000])
@pytest.mark.parametrize("name", VECTORS)
def test_cosine_of_the_vectors(name: str, chunk: int, seen: Seen, monkeypatch):
    monkeypatch.setattr(gram, "CHUNK", chunk)
    vectors = torch.stack([VECTORS[name](seen, e) for e in range(seen.evidence.layer.experts)])
    expected = (1 + torch.cosine_similarity(vectors[:, None], vectors, dim=2)) / 2
    torch.testing.assert_close(similarity(name)(seen.evidence), expected)


def test_mse_is_the_error_a_token_of_either_expert(seen: Seen):
    s, statistics = similarity("mse")(seen.evidence), seen.evidence.statistics
    assert statistics.pair_errors is not None
    errors, counts = statistics.pair_errors, statistics.counts
    mean = (errors[1, 4] + errors[4, 1]) / (counts[1] + counts[4])
    torch.testing.assert_close(s[1, 4], 1 / (1 + mean))
    torch.testing.assert_close(s[4, 1], 1 / (1 + mean))


def test_gate_and_up_count_as_in_projections_and_biases_as_weights():
    """A gated expert with biases: `weight` takes every tensor, `weight-feature` gate and up alone."""
    roles = [Role.GATE, Role.UP, Role.DOWN, Role.UP_BIAS]
    shapes = {Role.GATE: (4, 3), Role.UP: (4, 3), Role.DOWN: (3, 4), Role.UP_BIAS: (4,)}
    layer = make_layer({role.value: role for role in roles}, d=3, f=4, experts=2)
    generator = torch.Generator().manual_seed(0)
    experts = [{role.value: torch.randn(shapes[role], generator=generator) for role in roles} for _ in range(2)]
    source = Tensors({layer.places[name].name(e): value for e in (0, 1) for name, value in experts[e].items()})
    statistics = LayerStatistics.zeros(2, 3)
    statistics.input_square_sums += torch.tensor([[4.0, 9.0, 1.0], [1.0, 0.0, 25.0]])
    norms = statistics.input_square_sums.sqrt()
    compared = {
        "weight": [all_of(expert) for expert in experts],
        "weight-feature": [
            torch.cat([(e["gate"] * n).flatten(), (e["up"] * n).flatten()]) for e, n in zip(experts, norms)
        ],
    }
    for name, (one, other) in compared.items():
        expected = (1 + torch.cosine_similarity(one.double(), other.double(), dim=0)) / 2
        torch.testing.assert_close(similarity(name)(Evidence(layer, statistics, source))[0, 1], expected)


class Tensors(dict[str, Tensor], TensorSource):
    """Tensors by name, read as those of a checkpoint are."""

    def tensor(self, name: str) -> Tensor:
        return self[name]
