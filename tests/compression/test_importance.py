import torch

from mcsmoe.compression.importance import moving_average, row_sensitivity
from tests.compression.settings import random


def test_row_sensitivity_is_the_mean_over_a_row():
    rows, gradient = random(5, 7), random(5, 7, seed=1)
    expected = torch.tensor([sum(abs(float(s * g)) for s, g in zip(*pair)) / 7 for pair in zip(rows, gradient)])
    torch.testing.assert_close(row_sensitivity(rows, gradient), expected)


def test_moving_average():
    torch.testing.assert_close(
        moving_average(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]), 0.85), torch.tensor([0.85, 0.3])
    )
