"""How much experts count."""

import pytest
import torch

from mcsmoe.calibration.statistics import ALSO, LayerStatistics, RoutingStatistics
from mcsmoe.errors import CheckpointError
from mcsmoe.grouping.budget import BUDGETS
from mcsmoe.grouping.group import Grouping, group
from mcsmoe.grouping.importance import IMPORTANCES


def layer(*also: str) -> LayerStatistics:
    """Three experts: used often and quiet, seldom and loud, never."""
    sums = LayerStatistics.zeros(3, 2, also)
    sums.coselection += torch.diag(torch.tensor([6.0, 2.0, 0.0]))
    sums.gates += torch.tensor([3.0, 1.5, 0.0])
    if sums.norms is not None and sums.gated_norms is not None:
        sums.norms += torch.tensor([12.0, 20.0, 0.0])
        sums.gated_norms += torch.tensor([6.0, 16.0, 0.0])
    return sums


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("frequency", [6, 2, 0]),
        ("soft-count", [3, 1.5, 0]),
        ("ean", [12, 20, 0]),
        ("man", [2, 10, 0]),
        ("reap", [1, 8, 0]),
    ],
)
def test_shares_of_the_layer(name: str, values: list[float]):
    found = IMPORTANCES[name](layer("norms"))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([value / sum(values) for value in values])


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_without_a_token_nobody_counts(name: str):
    assert IMPORTANCES[name](LayerStatistics.zeros(3, 2, ["norms"])).tolist() == [0, 0, 0]


def test_frequency_is_the_activation_frequency_bit_by_bit():
    sums = LayerStatistics.zeros(32, 2)
    sums.coselection += torch.diag(torch.randint(0, 1000, (32,), generator=torch.Generator().manual_seed(0)).double())
    assert torch.equal(IMPORTANCES["frequency"](sums), sums.frequency)


@pytest.mark.parametrize("name", list(IMPORTANCES))
def test_what_was_not_collected_is_named(name: str):
    needs = IMPORTANCES.fact(name, "needs")
    if needs is None:
        assert torch.equal(IMPORTANCES[name](layer()), IMPORTANCES[name](layer("norms")))
    else:
        assert needs in ALSO
        with pytest.raises(CheckpointError, match=f"importance '{name}' needs `also` to list '{needs}'"):
            IMPORTANCES[name](layer())


def test_it_decides_who_is_dominant_and_how_members_weigh():
    def plan(name: str):
        how = Grouping("routing-guided", BUDGETS["global"], 1, lambda _: torch.ones(3, 3), None, 0, IMPORTANCES[name])
        (only,) = group(RoutingStatistics({"encoder.1": layer("norms")}), (), how)["encoder.1"].groups
        return only

    assert plan("frequency").dominant == 0
    assert plan("frequency").weights == (0.75, 0.25, 0)
    assert plan("ean").dominant == 1
    assert plan("ean").weights == (0.375, 0.625, 0)
