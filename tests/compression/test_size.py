import pytest

from mcsmoe.compression.size import check_size, compressed_parameters, kept_rows
from mcsmoe.errors import ParameterError
from tests.compression.settings import compress

SHAPES = {"encoder.1.wi": (4, 32, 16), "encoder.1.wo": (4, 16, 32)}


def test_formula():
    assert compressed_parameters((4, 32, 16), 2, 10) == 4 * 2 * (32 + 16) + 10 * 16


def test_what_shrinks_is_accepted():
    check_size(SHAPES, compress(rank=2, final_ratio=0.1))
    check_size(SHAPES, compress(rank=10, final_ratio=0.0))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5])
def test_largest_rank_named_is_the_largest_that_passes_its_check(ratio):
    with pytest.raises(ParameterError, match=r"compress\.rank = 12.*encoder\.1\.wi.*at most (\d+)") as caught:
        check_size(SHAPES, compress(rank=12, final_ratio=ratio))
    largest = int(str(caught.value).rsplit(" ", 1)[1])
    with pytest.raises(ParameterError, match=r"compress\.rank"):
        check_size(SHAPES, compress(rank=largest + 1, final_ratio=ratio))
    assert largest * (32 + 16) + ratio * 32 * 16 < 32 * 16


def test_equal_size_is_refused():
    """r(d + f) = 3·48 = 144 = 512 − 0.71875·512."""
    with pytest.raises(ParameterError, match=r"^compress\.rank = 3"):
        check_size(SHAPES, compress(rank=3, final_ratio=0.71875))


def test_no_rank_fits():
    with pytest.raises(ParameterError, match=r"lower compress\.final_ratio"):
        check_size(SHAPES, compress(rank=1, final_ratio=0.95))


def test_widest_rows_could_outgrow():
    """Each weight alone would shrink; all rows of the wide one and of some narrow ones would not."""
    with pytest.raises(ParameterError, match=r"compress\.final_ratio = 0\.6.*widest"):
        check_size(SHAPES, compress(rank=4, final_ratio=0.6))


def test_share_is_counted_exactly():
    assert kept_rows(50, 0.29) == 15  # half of 29, and 0.29 * 50 + 0.5 is 14.999999999999998 in floats
    assert kept_rows(10, 0.0) == 0
    assert kept_rows(10, 1.0) == 10
