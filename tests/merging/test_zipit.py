import pytest
import torch
from torch import Tensor

from mcsmoe.families import Expert, Layout, Role
from mcsmoe.families.experts import hidden
from mcsmoe.merging.rules import RULES
from mcsmoe.merging.zipit import clusters
from tests.alignment.experts import GATED, PLAIN, RELU
from tests.merging.members import F, group, make_layer, random_experts, tokens


def greedy(similarity: Tensor, count: int) -> list[set[int]]:
    """Merge the two most similar clusters until `count` are left, similarities averaged over all pairs of neurons."""
    found = [{i} for i in range(len(similarity))]
    while len(found) > count:
        pairs = [(i, j) for i in range(len(found)) for j in range(i)]
        i, j = max(pairs, key=lambda p: float(similarity[list(found[p[0]])][:, list(found[p[1]])].mean()))
        found[j] |= found.pop(i)
    return found


def as_sets(labels: Tensor) -> list[set[int]]:
    return [set((labels == k).nonzero().flatten().tolist()) for k in range(int(labels.max()) + 1)]


def neurons(expert: Expert, layout: Layout) -> Tensor:
    parts = [
        v.movedim(axis, 0).reshape(F, -1) for k, v in expert.items() if (axis := layout[k].hidden_axis) is not None
    ]
    return torch.cat(parts, 1).double()


def similarity(kind: str, experts: list[Expert], layout: Layout, x: Tensor) -> Tensor:
    if kind == "zipit":
        rows = torch.cat([neurons(expert, layout) for expert in experts])
        return torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    return torch.corrcoef(torch.cat([hidden(expert, layout, RELU, x).double().T for expert in experts]))


@pytest.mark.parametrize("rule", ["zipit", "zipit-activation"])
@pytest.mark.parametrize("layout", [PLAIN, GATED], ids=["plain", "gated"])
@pytest.mark.parametrize("count", [2, 3])
def test_against_greedy_merging_with_merge_and_unmerge_matrices(rule: str, layout: Layout, count: int):
    experts, x = random_experts(layout, count), tokens(200)
    found = RULES[rule](group(experts, make_layer(layout), x))
    parts = sorted(greedy(similarity(rule, experts, layout, x), F), key=min)
    assert max(map(len, parts)) > count  # some merge is within a member
    merge, unmerge = torch.zeros(F, count * F), torch.zeros(count * F, F)
    for k, part in enumerate(parts):
        merge[k, list(part)] = 1 / len(part)
        unmerge[list(part), k] = 1
    for name, role in layout.items():
        expected: Tensor | float
        if role.hidden_axis == 0:
            expected = merge @ torch.cat([expert[name] for expert in experts])
        elif role is Role.DOWN:
            expected = sum(e[name] @ u for e, u in zip(experts, unmerge.split(F))) / count
        else:
            expected = sum(expert[name] for expert in experts) / count
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def test_clusters_of_random_neurons_are_the_greedy_ones():
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cosines = torch.corrcoef(rows)
    labels = clusters(cosines.clone(), 12)
    assert as_sets(labels) == sorted(greedy(cosines, 12), key=min)


@pytest.mark.parametrize("count", [1, 4, 9, 20])
def test_ties_leave_exactly_the_clusters_asked_for(count: int):
    labels = clusters(torch.ones(20, 20, dtype=torch.float64), count)
    assert labels.unique().tolist() == list(range(count))
