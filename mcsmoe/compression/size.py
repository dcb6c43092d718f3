"""How large a compressed weight is, and the check that it is smaller than it was."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil

from mcsmoe.errors import ParameterError
from mcsmoe.params import Compress

Shape = tuple[int, int, int]
"""Experts, output neurons, inputs of a stacked weight."""


def compressed_parameters(shape: Shape, rank: int, kept: int) -> int:
    """Parameters of a stacked weight as U, V and `kept` rows of S (over all experts)."""
    experts, d_out, d_in = shape
    return experts * rank * (d_out + d_in) + kept * d_in


def check_size(shapes: Mapping[str, Shape], settings: Compress) -> None:
    """Raise `ParameterError` unless every weight shrinks, before any work is done.

    Two checks, because one threshold over all rows leaves open which weight keeps them: each weight must
    shrink if it keeps its share of rows, and all together even if only the widest rows are kept.
    """
    for name, shape in shapes.items():
        _check_one(name, shape, settings)
    before = sum(experts * d_out * d_in for experts, d_out, d_in in shapes.values())
    after = sum(compressed_parameters(shape, settings.rank, 0) for shape in shapes.values())
    left = kept_rows(sum(experts * d_out for experts, d_out, _ in shapes.values()), settings.final_ratio)
    for experts, d_out, d_in in sorted(shapes.values(), key=lambda shape: -shape[2]):
        rows = min(left, experts * d_out)
        after, left = after + rows * d_in, left - rows
    if after >= before:
        raise ParameterError(
            "compress.final_ratio",
            settings.final_ratio,
            f"with compress.rank = {settings.rank} the experts could grow from {before} to {after} "
            "parameters if the widest rows are kept; lower one of the two",
        )


def _check_one(name: str, shape: Shape, settings: Compress) -> None:
    _, d_out, d_in = shape
    share = Fraction(str(settings.final_ratio))
    room = (1 - share) * d_out * d_in  # what is left for the factors of one expert
    if settings.rank * (d_out + d_in) < room:
        return
    largest = ceil(room / (d_out + d_in)) - 1
    remedy = f"use a rank of at most {largest}" if largest > 0 else "lower compress.final_ratio"
    raise ParameterError(
        "compress.rank",
        settings.rank,
        f"{name} [{d_out}, {d_in}] would not shrink while compress.final_ratio = {settings.final_ratio} "
        f"of its rows are kept; {remedy}",
    )


def kept_rows(rows: int, share: float) -> int:
    """How many of `rows` are kept for a share; exact for shares written in decimals, halves go up."""
    return int(Fraction(str(share)) * rows + Fraction(1, 2))


def rank_of_ratio(share: float, d_out: int, d_in: int) -> int:
    """The rank whose factors hold `share` of a weight's parameters, rounded up (LoSparse, arXiv 2306.11222).

    Exact rational arithmetic: with floats, a share computed from rank 25 came back as rank 26.
    """
    exact = Fraction(share).limit_denominator(10**8)
    return ceil(exact * d_out * d_in / (d_out + d_in))
