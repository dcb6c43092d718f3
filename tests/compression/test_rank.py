import json

import pytest

from mcsmoe.compression.size import rank_of, rank_of_ratio
from tests.compression.settings import compress
from tests.shared import GOLDEN, needs_golden

SHAPES = {"wi_96x48": (96, 48), "wo_48x96": (48, 96), "decaying_64x64": (64, 64), "rank3_40x24": (40, 24)}


@pytest.mark.parametrize("share", [0.001, 0.1, 0.15, 0.29, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(96, 48), (40, 24), (3072, 768)])
def test_the_largest_rank_within_the_share(share, shape):
    d_out, d_in = shape
    rank = rank_of_ratio(share, d_out, d_in)
    thousandths = round(1000 * share)
    assert 1000 * (rank + 1) * (d_out + d_in) > thousandths * d_out * d_in
    assert 1000 * rank * (d_out + d_in) <= thousandths * d_out * d_in or rank == 1


def test_no_share_is_rank_0_and_any_share_at_least_1():
    assert rank_of_ratio(0.0, 96, 48) == 0
    assert rank_of_ratio(1e-12, 96, 48) == 1


def test_settings_give_a_rank_or_a_share():
    assert rank_of(compress(rank=7), 96, 48) == 7
    assert rank_of(compress(rank=0), 96, 48) == 0
    assert rank_of(compress(rank=None, rank_ratio=0.25), 96, 48) == 8


def test_rank_survives_the_way_through_a_ratio():
    """The reference gives 26 for 25 at the first of these shapes, by ceil of a float."""
    for d_in, d_out in ((4096, 14336), (768, 3072), (48, 96)):
        most = d_out * d_in // (d_out + d_in)
        for rank in range(1, most + 1):
            assert rank_of_ratio(rank * (d_in + d_out) / (d_in * d_out), d_out, d_in) == rank


@needs_golden
def test_golden_ranks():
    """The reference's rank is ours where the share makes a whole one, else one more, beyond the share."""
    facts = json.loads((GOLDEN / "losparse" / "decomposition.json").read_text())
    agree: set[str] = set()
    above: set[str] = set()
    for key, value in facts.items():
        if ".ratio=" in key:
            name = key.split(".")[0]
            more = value["reduced_rank"] - rank_of_ratio(value["parameter_ratio"], *SHAPES[name])
            {0: agree, 1: above}[more].add(key)
    assert agree == {f"{name}.ratio=0.250000" for name in SHAPES if name != "rank3_40x24"} | {
        "rank3_40x24.ratio=0.533333"
    }
    assert len(above) == 12


@needs_golden
def test_golden_round_trip():
    facts = json.loads((GOLDEN / "losparse" / "decomposition.json").read_text())
    (cases,) = (value for key, value in facts.items() if key.startswith("rank round trip"))
    assert cases
    for d_in, d_out, asked, got in cases:
        assert rank_of_ratio(asked * (d_in + d_out) / (d_in * d_out), d_out, d_in) == asked == got - 1
