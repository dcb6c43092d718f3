"""The rank of U V: given outright, or as a share of a weight's parameters."""

from fractions import Fraction
from math import floor

from mcsmoe.params import Compress


def rank_of(settings: Compress, d_out: int, d_in: int) -> int:
    """The rank that `settings` ask for in a weight [d_out, d_in]; 0 leaves no U V."""
    if settings.rank is not None:
        return settings.rank
    assert settings.rank_ratio is not None  # params refuse it
    return rank_of_ratio(settings.rank_ratio, d_out, d_in)


def rank_of_ratio(share: float, d_out: int, d_in: int) -> int:
    """The largest rank r with r·(out + in) ≤ share·out·in; at least 1, unless the share is 0.

    Exact rational arithmetic. The reference takes the ceiling of a float: a share computed from rank 25 came
    back as rank 26.
    """
    if share == 0:
        return 0
    # The float of 0.1, or of 25/96, is not that number; the simplest fraction near it is.
    exact = Fraction(share).limit_denominator(10**8)
    return max(1, floor(exact * d_out * d_in / (d_out + d_in)))
