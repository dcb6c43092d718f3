import re

import pytest
import torch

from mcsmoe.compression.factorise import factorise
from mcsmoe.compression.size import check_size, factor_bytes, kept_units, unit_bytes, units
from mcsmoe.errors import ParameterError
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from tests.compression.settings import compress, random

SHAPES = {"encoder.1.wi": (4, 32, 16), "encoder.1.wo": (4, 16, 32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("structure", ["row", "column", "element", "none"])
def test_bytes_are_those_of_the_module(structure, rank, dtype):
    shape = (4, 10, 6)
    module = FactorisedLinears.from_factors(*factorise(random(*shape).to(dtype), rank), structure)
    if module.sparse is not None:
        assert module.kept == 4 * units(structure, 10, 6).number
        module.sparse.keep(torch.arange(module.kept) % 3 == 0)
    found = sum(tensor.nbytes for tensor in module.state_dict().values())
    kept = module.kept * unit_bytes(structure, 10, 6, dtype.itemsize)
    assert found == factor_bytes(shape, rank, structure, dtype.itemsize) + kept


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 2, "final_ratio": 0.1},
        {"rank": 10, "final_ratio": 0.0},
        {"rank": 0, "final_ratio": 0.9},
        {"rank": 10, "structure": "none", "final_ratio": 1.0},
        {"rank": 0, "structure": "element", "final_ratio": 0.48},
        {"rank": None, "rank_ratio": 0.5, "structure": "column", "final_ratio": 0.3},
    ],
)
def test_what_shrinks_is_accepted(changes):
    check_size(SHAPES, compress(**changes))


@pytest.mark.parametrize("structure", ["row", "column", "element", "none"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25])
def test_largest_rank_named_is_the_largest_that_passes_its_check(structure, ratio):
    settings = {"structure": structure, "final_ratio": ratio}
    with pytest.raises(ParameterError, match=r"^rank = 12.*encoder\.1\.wi") as caught:
        check_size(SHAPES, compress(rank=12, **settings))
    largest = int(re.findall(r"at most (\d+)", str(caught.value))[0])
    with pytest.raises(ParameterError, match=r"^rank"):
        check_size(SHAPES, compress(rank=largest + 1, **settings))
    check_size({"encoder.1.wi": SHAPES["encoder.1.wi"]}, compress(rank=largest, **settings))


def test_a_ratio_below_the_limit_named_passes():
    one = {"encoder.1.wi": SHAPES["encoder.1.wi"]}
    with pytest.raises(ParameterError, match=r"^rank_ratio = 0\.95: .* at rank 10 ") as caught:
        check_size(one, compress(rank=None, rank_ratio=0.95, final_ratio=0.25))
    limit = float(re.findall(r"below (\S+)", str(caught.value))[0])
    check_size(one, compress(rank=None, rank_ratio=limit - 1e-4, final_ratio=0.25))
    with pytest.raises(ParameterError, match=r"^rank_ratio"):
        check_size(one, compress(rank=None, rank_ratio=limit + 1e-4, final_ratio=0.25))


def test_equal_size_is_refused():
    """10·15 values: rank 2 takes 2·25, the starts of one expert's rows 4, and 6 of the 10 rows 6·(15 + 1)."""
    shape = {"encoder.1.wi": (1, 10, 15)}
    with pytest.raises(ParameterError, match=r"^rank = 2: .*at most 1$"):
        check_size(shape, compress(rank=2, final_ratio=0.6))
    check_size(shape, compress(rank=2, final_ratio=0.5))


@pytest.mark.parametrize("rank", [0, 1])
def test_no_rank_fits(rank):
    with pytest.raises(ParameterError, match=r"^final_ratio = 0\.97: .*of its rows are kept; lower it"):
        check_size(SHAPES, compress(rank=rank, final_ratio=0.97))


def test_the_place_of_an_element_takes_as_much_as_its_value():
    with pytest.raises(ParameterError, match=r"^final_ratio = 0\.5: .*of its elements are kept"):
        check_size(SHAPES, compress(rank=0, structure="element", final_ratio=0.5))
    with pytest.raises(ParameterError, match=r"^final_ratio = 0\.4: "):  # two bytes a value, four a place
        check_size(SHAPES, compress(rank=0, structure="element", final_ratio=0.4), value_bytes=2)


@pytest.mark.parametrize("structure", ["row", "column"])
def test_widest_units_could_outgrow(structure):
    """Each weight alone would shrink; all units of the wide one and of some narrow ones would not."""
    with pytest.raises(ParameterError, match=rf"^final_ratio = 0\.6.*largest {structure}s"):
        check_size(SHAPES, compress(rank=3, structure=structure, final_ratio=0.6))


def test_share_is_counted_exactly():
    assert kept_units(50, 0.29) == 15  # half of 29, and 0.29 * 50 + 0.5 is 14.999999999999998 in floats
    assert kept_units(10, 0.0) == 0
    assert kept_units(10, 1.0) == 10
