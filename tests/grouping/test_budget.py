from collections.abc import Sequence

import pytest
import torch

from mcsmoe.errors import ParameterError
from mcsmoe.grouping.budget import BUDGETS, check, total_groups


def frequencies(*layers: Sequence[float]) -> dict[str, torch.Tensor]:
    return {f"layer.{i}": torch.tensor(layer, dtype=torch.float64) for i, layer in enumerate(layers)}


def test_global_keeps_the_most_used_of_each_layer_and_fills_up_by_frequency():
    use = frequencies([0.4, 0.3, 0.2, 0.1], [0.9, 0.05, 0.05, 0.0], [0.1, 0.2, 0.3, 0.4])
    assert BUDGETS["global"](use, 2) == {"layer.0": [0, 1, 2], "layer.1": [0], "layer.2": [3, 2]}


@pytest.mark.parametrize("groups", [1, 1.25, 2, 3, 3.75, 4])
@pytest.mark.parametrize("kind", ["ties", "unused", "one expert used"])
def test_global_gives_exactly_the_budget(groups: float, kind: str):
    use = {
        "ties": frequencies(*[[0.25] * 4] * 4),
        "unused": frequencies(*[[0.0] * 4] * 4),
        "one expert used": frequencies(*[[0, 0, 1, 0]] * 4),
    }[kind]
    chosen = BUDGETS["global"](use, groups)
    assert sum(map(len, chosen.values())) == groups * 4
    assert all(len(set(experts)) == len(experts) >= 1 for experts in chosen.values())


def test_ties_go_to_the_earlier_layer_then_to_the_lower_id():
    use = frequencies([0.25] * 4, [0.25] * 4)
    assert BUDGETS["global"](use, 2.5) == {"layer.0": [0, 1, 2, 3], "layer.1": [0]}


def test_fractions_are_exact():
    assert total_groups(2.3, 10) == 23
    assert total_groups(1.1, 3) == 3


def test_uniform_keeps_the_most_used():
    use = frequencies([0.1, 0.2, 0.3, 0.4], [0.25] * 4)
    assert BUDGETS["uniform"](use, 2) == {"layer.0": [3, 2], "layer.1": [0, 1]}


@pytest.mark.parametrize(
    ("groups", "budget", "message"),
    [
        (0.5, "global", "at least one group"),
        (0, "uniform", "at least one group"),
        (5, "uniform", "5 groups asked of the smallest merged layer with 4 experts"),
        (6.5, "global", "13 groups asked of all merged layers together with 12 experts"),
        (1.5, "uniform", "whole number"),
    ],
)
def test_a_budget_that_cannot_be_had(groups: float, budget: str, message: str):
    with pytest.raises(ParameterError, match=f"merge.groups = {groups}.*{message}"):
        check(groups, {"a": 4, "b": 8}, budget)


def test_nothing_to_merge():
    assert BUDGETS["global"]({}, 2) == BUDGETS["uniform"]({}, 2) == {}
