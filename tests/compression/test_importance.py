import pytest
import torch

from mcsmoe.compression.pruner import UnitImportance, magnitude, sensitivity
from tests.compression.settings import compress, random


def test_scores_are_means_over_a_unit():
    values, gradient = random(5, 7), random(5, 7, seed=1)
    expected = torch.tensor([sum(abs(float(s * g)) for s, g in zip(*pair)) / 7 for pair in zip(values, gradient)])
    torch.testing.assert_close(sensitivity(values, gradient), expected)
    expected = torch.tensor([sum(abs(float(s)) for s in unit) / 7 for unit in values])
    torch.testing.assert_close(magnitude(values, gradient), expected)


def test_without_gradient_nothing_is_sensitive_and_magnitude_stays():
    values = random(5, 7)
    assert torch.equal(sensitivity(values, None), torch.zeros(5))
    assert torch.equal(magnitude(values, None), magnitude(values, values))


@pytest.mark.parametrize(
    ("given", "found"), [("bfloat16", torch.float32), ("float32", torch.float32), ("float64", torch.float64)]
)
def test_scores_are_float32_or_better(given, found):
    values = random(2, 3).to(getattr(torch, given))
    for importance in ("sensitivity", "magnitude"):
        averages = UnitImportance(values, compress(importance=importance, uncertainty=0.9))
        for gradient in (values, None):
            averages.update(values, gradient)
            assert averages.ranking.dtype == found


def test_moving_averages():
    """Scores 4 and 2 of one unit, β ½, β₂ ¾: I = 2, 2; U = ¼·2 = ½, then ¾·½ + ¼·0."""
    steps = [torch.tensor([[4.0]]), torch.tensor([[-2.0]])]
    plain = UnitImportance(steps[0], compress(importance="magnitude", beta=0.5))
    uncertain = UnitImportance(steps[0], compress(importance="magnitude", beta=0.5, uncertainty=0.75))
    found = []
    for values in steps:
        plain.update(values, None)
        uncertain.update(values, None)
        found.append((float(plain.ranking), float(uncertain.ranking)))
    assert found == [(2.0, 1.0), (2.0, 0.75)]
