"""Against what the reference grouped, from its own frequencies and similarities."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mcsmoe.grouping.budget import BUDGETS
from mcsmoe.grouping.group import GROUPERS, Problem
from tests.golden_switch import SWITCH, golden_groupings
from tests.grouping.problems import problem
from tests.shared import needs_golden

pytestmark = [needs_golden, pytest.mark.parametrize("basis", ["router-logits", "weight"])]


@cache
def frequencies() -> dict[str, Tensor]:
    tensors = load_file(SWITCH / "usage.safetensors")
    return {name.removeprefix("usage."): nu for name, nu in tensors.items() if name.startswith("usage.")}


def similarity(basis: str, layer: str) -> Tensor:
    return load_file(SWITCH / "similarity.safetensors")[f"{basis}|{layer}"].double()


def routing_guided(basis: str, layer: str, dominant: list[int], capacity: int | None) -> list[int]:
    given = Problem(frequencies()[layer], dominant, lambda: similarity(basis, layer), capacity)
    return GROUPERS["routing-guided"](given).tolist()


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_global_budget(basis: str, groups: int):
    golden = golden_groupings()[f"{basis}/global/{groups}/all"]
    dominant = BUDGETS["global"](frequencies(), groups, None)
    assert dominant == golden["core"]
    for layer, experts in dominant.items():
        assert routing_guided(basis, layer, experts, None) == golden["labels"][layer]


@pytest.mark.parametrize(("encoder", "decoder"), [(3, None), (4, None), (4, 4), (6, 2)])
def test_capacity_of_the_encoder(basis: str, encoder: int, decoder: int | None):
    """Its capacity counts the dominant expert, as ours does; the decoder's it ignores, so there we give none."""
    golden = golden_groupings()[f"{basis}/global/3/all/enc_capacity={encoder},dec_capacity={decoder}"]
    for layer, labels in golden["labels"].items():
        capacity = encoder if layer.startswith("encoder") else None
        assert routing_guided(basis, layer, golden["core"][layer], capacity) == labels


def test_capacity_of_every_layer(basis: str):
    """Capacity 4: the reference leaves a decoder layer with one group of 8. Here it gets a second one.

    The slot comes from the least used of the dominant experts; layers that lose or gain none are grouped
    as by the reference.
    """
    golden = golden_groupings()[f"{basis}/global/3/all/enc_capacity=4,dec_capacity=4"]
    dominant = BUDGETS["global"](frequencies(), 3, 4)
    changed = {layer for layer, experts in dominant.items() if experts != golden["core"][layer]}
    assert changed == {"decoder.block.5.layer.2.mlp", "encoder.block.5.layer.1.mlp"}
    for layer, experts in dominant.items():
        labels = routing_guided(basis, layer, experts, 4)
        assert max(map(labels.count, labels)) <= 4
        assert layer in changed or labels == golden["labels"][layer]


def test_spectral(basis: str):
    """The same parts; the reference numbers them as the library does, we by their use."""
    for layer, labels in golden_groupings()[f"{basis}/spectral/3"]["labels"].items():
        ours = GROUPERS["spectral"](problem(similarity(basis, layer), 3, frequencies()[layer]))
        golden = torch.tensor(labels)
        assert torch.equal(ours[:, None] == ours, golden[:, None] == golden)
