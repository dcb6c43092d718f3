"""Intervals against what is known of them."""

import numpy as np
import pytest

from mcsmoe.evaluation.quality import interval
from mcsmoe.tasks.score import Score, f1, share

RIGHT = [i % 4 != 0 for i in range(400)]  # 0.75


def test_the_interval_of_a_share_is_near_the_normal_one():
    low, high = interval(share(RIGHT))
    error = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == (pytest.approx(0.75 - error, abs=0.006), pytest.approx(0.75 + error, abs=0.006))
    assert interval(share(RIGHT)) == (low, high)


def test_clusters_are_drawn_whole():
    # Ten questions of forty examples, each right or wrong as a whole, in no order: as good as ten examples.
    clusters = [f"q{i % 10}" for i in range(400)]
    alike = share([i % 10 < 7 for i in range(400)], clusters)
    assert interval(alike) == interval(share([i < 7 for i in range(10)]))


def test_columns_are_drawn_together():
    known = np.array([1, 0] * 50)
    assert interval(Score((known, known.copy()), f1), draws=20) == (1, 1)
    low, high = interval(Score((known, 1 - known * (np.arange(100) < 20)), f1), draws=50)
    assert low < f1(known, 1 - known * (np.arange(100) < 20)) < high
