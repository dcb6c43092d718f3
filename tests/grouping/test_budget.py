from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest
import torch

from mcsmoe.errors import ParameterError
from mcsmoe.grouping.budget import BUDGETS, by_importance, check, least_groups, total_groups


def frequencies(*layers: Sequence[float]) -> dict[str, torch.Tensor]:
    return {f"layer.{i}": torch.tensor(layer, dtype=torch.float64) for i, layer in enumerate(layers)}


def test_global_keeps_the_most_used_of_each_layer_and_fills_up_by_frequency():
    use = frequencies([0.4, 0.3, 0.2, 0.1], [0.9, 0.05, 0.05, 0.0], [0.1, 0.2, 0.3, 0.4])
    assert BUDGETS["global"](use, 2, None) == {"layer.0": [0, 1, 2], "layer.1": [0], "layer.2": [3, 2]}


@pytest.mark.parametrize("groups", [1, 1.25, 2, 3, 3.75, 4])
@pytest.mark.parametrize("kind", ["ties", "unused", "one expert used"])
def test_global_gives_exactly_the_budget(groups: float, kind: str):
    use = {
        "ties": frequencies(*[[0.25] * 4] * 4),
        "unused": frequencies(*[[0.0] * 4] * 4),
        "one expert used": frequencies(*[[0, 0, 1, 0]] * 4),
    }[kind]
    chosen = BUDGETS["global"](use, groups, None)
    assert sum(map(len, chosen.values())) == groups * 4
    assert all(len(set(experts)) == len(experts) >= 1 for experts in chosen.values())


def test_ties_go_to_the_earlier_layer_then_to_the_lower_id():
    use = frequencies([0.25] * 4, [0.25] * 4)
    assert BUDGETS["global"](use, 2.5, None) == {"layer.0": [0, 1, 2, 3], "layer.1": [0]}


def test_fractions_are_exact():
    assert total_groups(2.3, 10) == 23
    assert total_groups(1.1, 3) == 3


def test_uniform_keeps_the_most_used():
    use = frequencies([0.1, 0.2, 0.3, 0.4], [0.25] * 4)
    assert BUDGETS["uniform"](use, 2, None) == {"layer.0": [3, 2], "layer.1": [0, 1]}


@pytest.mark.parametrize(
    ("groups", "budget", "message"),
    [
        (0.5, "global", "at least one group"),
        (0, "uniform", "at least one group"),
        (5, "uniform", "5 groups asked of the smallest merged layer with 4 experts: at most 4 a layer"),
        (6.5, "global", "13 groups asked of all merged layers together with 12 experts: at most 6 a layer"),
        (1.5, "uniform", "whole number"),
    ],
)
def test_a_budget_that_cannot_be_had(groups: float, budget: str, message: str):
    with pytest.raises(ParameterError, match=f"^groups = {groups}: .*{message}"):
        check(groups, {"a": 4, "b": 8}, budget)


def test_nothing_to_merge():
    assert BUDGETS["global"]({}, 2, None) == BUDGETS["uniform"]({}, 2, None) == {}


def by_enumeration(use: dict[str, torch.Tensor], total: int, capacity: int | None) -> set[tuple[str, int]]:
    """Of all choices that leave no layer short: the highest ν, then the earlier layers, then the lower ids."""
    keys = [(-float(nu[e]), place, e, name) for place, (name, nu) in enumerate(use.items()) for e in range(len(nu))]

    def enough(chosen: tuple[tuple[float, int, int, str], ...]) -> bool:
        count = Counter(name for *_, name in chosen)
        return all(count[name] * (len(nu) if capacity is None else capacity) >= len(nu) for name, nu in use.items())

    best = min(sorted(chosen) for chosen in combinations(keys, total) if enough(chosen))
    return {(name, e) for _, _, e, name in best}


@pytest.mark.parametrize("capacity", [None, 2, 3])
@pytest.mark.parametrize("highest", [1, 4, 1000])
def test_global_against_enumeration(capacity: int | None, highest: int):
    generator = torch.Generator().manual_seed(0)
    for sizes in [(4, 4), (3, 5), (4, 2, 3, 1), (1, 4, 2, 4)]:
        use = {f"layer.{i}": torch.randint(highest, (n,), generator=generator).double() for i, n in enumerate(sizes)}
        least = sum(least_groups(n, capacity) for n in sizes)
        for total in range(least, sum(sizes) + 1):
            chosen = BUDGETS["global"](use, total / len(sizes), capacity)
            assert {(name, e) for name, order in chosen.items() for e in order} == by_enumeration(use, total, capacity)
            for name, order in chosen.items():
                assert order == by_importance(use[name])[: len(order)]


@pytest.mark.parametrize("budget", ["global", "uniform"])
def test_every_layer_has_room_for_its_experts(budget: str):
    use = frequencies([1.0] + [0.0] * 7, [0.5, 0.5] + [0.0] * 6)
    chosen = BUDGETS[budget](use, 3, 3)
    assert [len(order) for order in chosen.values()] == [3, 3]


@pytest.mark.parametrize(
    ("groups", "budget", "capacity", "counts"),
    [(2, "uniform", 3, "2 groups where 3"), (2, "global", 3, "4 groups where 5"), (1, "global", 7, "2 groups where 3")],
)
def test_a_capacity_that_the_budget_is_too_small_for(groups: int, budget: str, capacity: int, counts: str):
    with pytest.raises(ParameterError, match=rf"^capacity = {capacity}: `groups` = {groups} gives {counts}"):
        BUDGETS[budget](frequencies([0.25] * 4, [0.125] * 8), groups, capacity)


def test_the_smallest_capacity_that_will_do():
    check(2, {"a": 4, "b": 8}, "uniform", 4)
    check(1.5, {"a": 4, "b": 8}, "global", 4)
