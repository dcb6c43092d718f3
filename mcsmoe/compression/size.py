"""Bytes of a compressed weight, and the check that they are fewer than before."""

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

from mcsmoe.errors import ParameterError
from mcsmoe.params import Compress

PLACE_BYTES = 4  # the place of a unit in its expert's matrix, int32
START_BYTES = 8  # offset of the first unit of an expert, int64; E experts have E + 1 offsets

Shape = tuple[int, int, int]
"""Shape of a stacked weight: (experts, out, in)."""


class Units(NamedTuple):
    """Number of units (rows, columns or elements) in S of one expert, and the number of entries in each."""

    number: int
    width: int


def units(structure: str, d_out: int, d_in: int) -> Units:
    """The units of S [d_out, d_in]: `row` → (d_out, d_in), `element` → (d_out · d_in, 1), `none` (no S) → (0, 0)."""
    by_structure = {"row": (d_out, d_in), "column": (d_in, d_out), "element": (d_out * d_in, 1), "none": (0, 0)}
    return Units(*by_structure[structure])


def unit_bytes(structure: str, d_out: int, d_in: int, value_bytes: int) -> int:
    """Bytes of one kept unit: those of its entries and of its place."""
    return units(structure, d_out, d_in).width * value_bytes + PLACE_BYTES


def factor_bytes(shape: Shape, rank: int, structure: str, value_bytes: int) -> int:
    """Bytes of a stacked weight of which no unit is kept: U, V and the offsets of S."""
    experts, d_out, d_in = shape
    starts = 0 if structure == "none" else (experts + 1) * START_BYTES
    return experts * rank * (d_out + d_in) * value_bytes + starts


def kept_units(count: int, share: float) -> int:
    """`share` × `count` units, exact for decimal shares, with halves rounded up: (5, 0.1) → 1."""
    return floor(Fraction(str(share)) * count + Fraction(1, 2))


def check_size(shapes: Mapping[str, Shape], settings: Compress, value_bytes: int = 4) -> None:
    """Raise `ParameterError` unless compression saves bytes; call this before any work.

    Because one threshold covers all units, it is not known in advance which weights keep theirs. So there are two
    checks: each weight must shrink if it keeps its share of units, and all weights together must shrink even if the
    largest units are the ones kept. value_bytes: bytes of one number.
    """
    for name, shape in shapes.items():
        _check_one(name, shape, settings, value_bytes)
    _check_largest_kept(list(shapes.values()), settings, value_bytes)


def _check_one(name: str, shape: Shape, settings: Compress, value_bytes: int) -> None:
    experts, d_out, d_in = shape
    structure, rank = settings.structure, rank_of(settings, d_out, d_in)
    kept = Fraction(str(settings.final_ratio)) * experts * units(structure, d_out, d_in).number
    room = (
        experts * d_out * d_in * value_bytes
        - factor_bytes(shape, 0, structure, value_bytes)
        - kept * unit_bytes(structure, d_out, d_in, value_bytes)
    )  # what is left for U and V
    of_a_rank = experts * (d_out + d_in) * value_bytes
    if rank * of_a_rank < room:
        return
    largest = ceil(room / of_a_rank) - 1
    while_kept = "" if structure == "none" else f" while {settings.final_ratio:.4g} of its {structure}s are kept"
    problem = f"{name} [{d_out}, {d_in}] would not shrink at rank {rank}{while_kept}"
    if largest < 1:
        raise ParameterError("final_ratio", settings.final_ratio, f"{problem}; lower it")
    if settings.rank is not None:
        raise ParameterError("rank", rank, f"{problem}; use a rank of at most {largest}")
    limit = floor(Fraction((largest + 1) * (d_out + d_in), d_out * d_in) * 10**4) / 10**4
    raise ParameterError("rank_ratio", settings.rank_ratio, f"{problem}; use a ratio below {limit:.4f}")


def _check_largest_kept(shapes: list[Shape], settings: Compress, value_bytes: int) -> None:
    structure = settings.structure
    before = sum(experts * d_out * d_in * value_bytes for experts, d_out, d_in in shapes)
    after = sum(factor_bytes(shape, rank_of(settings, *shape[1:]), structure, value_bytes) for shape in shapes)
    counts = [experts * units(structure, d_out, d_in).number for experts, d_out, d_in in shapes]
    sizes = [unit_bytes(structure, d_out, d_in, value_bytes) for _, d_out, d_in in shapes]
    left = kept_units(sum(counts), settings.final_ratio)
    for size, count in sorted(zip(sizes, counts), reverse=True):
        after += min(left, count) * size
        left -= min(left, count)
    if after >= before:
        raise ParameterError(
            "final_ratio",
            settings.final_ratio,
            f"the experts could grow from {before} to {after} bytes if the largest {structure}s are kept; "
            "lower it, or the rank",
        )


def rank_of(settings: Compress, d_out: int, d_in: int) -> int:
    """The rank that `settings` give for a weight [d_out, d_in]; 0 means no U V."""
    if settings.rank is not None:
        return settings.rank
    assert settings.rank_ratio is not None  # params require one of the two
    return rank_of_ratio(settings.rank_ratio, d_out, d_in)


def rank_of_ratio(share: float, d_out: int, d_in: int) -> int:
    """The largest rank r with r·(out + in) ≤ share·out·in; at least 1, unless the share is 0.

    Computed in exact rational arithmetic. The reference implementation takes the ceiling of a float, which turned a
    share computed from rank 25 into rank 26.
    """
    if share == 0:
        return 0
    # The float 0.1 is not exactly 1/10, nor is the float of 25/96; the simplest fraction nearby is.
    exact = Fraction(share).limit_denominator(10**8)
    return max(1, floor(exact * d_out * d_in / (d_out + d_in)))
