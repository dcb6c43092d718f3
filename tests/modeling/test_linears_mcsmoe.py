from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mcsmoe.modeling import sparse_mcsmoe
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.modeling.sparse_mcsmoe import CALLS, STRUCTURES
from tests.modeling.linears import dense, dense_sparse

EXPERTS, D_OUT, D_IN, SIZES = 4, 10, 6, [5, 0, 3, 4]
VARIANTS = [(structure, rank) for structure in STRUCTURES for rank in (2, 0)] + [("none", 2)]


def linears(structure, rank):
    """Factorised linear maps, with the u, v, s that they were made from."""
    generator = torch.Generator().manual_seed(0)
    shapes = (EXPERTS, D_OUT, rank), (EXPERTS, rank, D_IN), (EXPERTS, D_OUT, D_IN)
    u, v, s = (torch.randn(*shape, generator=generator) for shape in shapes)
    return FactorisedLinears.from_factors(u, v, s, structure), u, v, s


@pytest.fixture
def tokens():
    return torch.randn(sum(SIZES), D_IN, generator=torch.Generator().manual_seed(1))


def product(tokens, weight):
    return torch.cat([F.linear(part, matrix) for part, matrix in zip(tokens.split(SIZES), weight)])


def some(count, seed=2):
    """Half of the units, and of the third expert none."""
    alive = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    alive.view(EXPERTS, -1)[2] = False
    return alive


def selections(module):
    """Units alive: some, some of those that are left, none."""
    yield some(module.kept)
    yield torch.arange(module.kept) % 3 != 1
    yield torch.zeros(module.kept, dtype=torch.bool)


@pytest.mark.parametrize(("structure", "rank"), VARIANTS)
def test_equals_the_dense_product_before_any_unit_is_dropped(structure, rank, tokens):
    module, u, v, s = linears(structure, rank)
    weight = u @ v + (0 if structure == "none" else s)
    torch.testing.assert_close(dense(module), weight)
    torch.testing.assert_close(module(tokens, SIZES), product(tokens, weight))


@pytest.mark.parametrize(("structure", "rank"), VARIANTS[:-1])
def test_equals_the_dense_product_after_units_were_dropped(structure, rank, tokens):
    module, u, v, s = linears(structure, rank)
    alive = torch.ones(module.kept, dtype=torch.bool)
    for selection in selections(module):
        alive[alive.clone()] = selection  # units that are gone do not come back
        module.sparse.keep(selection)
        assert module.kept == alive.sum()
        unit = {"row": (D_OUT, 1), "column": (1, D_IN), "element": (D_OUT, D_IN)}[structure]
        kept = s * alive.view(EXPERTS, *unit)
        assert torch.equal(dense_sparse(module.sparse, structure), kept)
        torch.testing.assert_close(module(tokens, SIZES), product(tokens, u @ v + kept))


@pytest.mark.parametrize(("structure", "rank"), VARIANTS)
@pytest.mark.parametrize("sizes", [[0, 0, 7, 0], [0, 0, 0, 0]])
def test_one_expert_may_get_all_tokens_or_none_may_get_any(structure, rank, sizes, tokens):
    module, *_ = linears(structure, rank)
    x = tokens[: sum(sizes)]
    for selection in (some(module.kept), None):
        torch.testing.assert_close(module(x, sizes), F.linear(x, dense(module)[2]))
        if module.sparse is not None and selection is not None:
            module.sparse.keep(selection)


@pytest.mark.parametrize(("structure", "rank"), VARIANTS[:-1])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("calls", [0, CALLS], ids=["apart", "dense"])
def test_gradients_are_those_of_the_dense_product(structure, rank, drop, calls, tokens, monkeypatch):
    monkeypatch.setattr(sparse_mcsmoe, "CALLS", calls)
    module, *_ = linears(structure, rank)
    if drop:
        module.sparse.keep(some(module.kept))
    weight: Any = dense(module).requires_grad_()
    x, y = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
    module(x, SIZES).square().sum().backward()
    product(y, weight).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-4)
    where = dense_sparse(module.sparse, structure) != 0
    module.sparse.values.data = module.sparse.values.grad
    found, want = dense_sparse(module.sparse, structure), weight.grad
    torch.testing.assert_close(found[where], want[where], rtol=1e-5, atol=1e-4)
    if rank:
        torch.testing.assert_close(module.u.grad, want @ module.v.mT, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(module.v.grad, module.u.mT @ want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("structure", "rank"), VARIANTS)
def test_lower_precision_and_autocast(structure, rank, train, tokens):
    module, *_ = linears(structure, rank)
    if module.sparse is not None:
        module.sparse.keep(some(module.kept))
    with torch.set_grad_enabled(train):
        want = module(tokens, SIZES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(module(tokens, SIZES).float(), want, rtol=0.05, atol=0.1)
        torch.testing.assert_close(module.bfloat16()(tokens.bfloat16(), SIZES).float(), want, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_many_tokens_before_any_unit_is_dropped(structure):
    """Low rank and rest are added up into one matrix an expert, where few tokens are multiplied by both."""
    module, *_ = linears(structure, 2)
    x = torch.randn(10 * sum(SIZES), D_IN, generator=torch.Generator().manual_seed(1))
    sizes = [10 * size for size in SIZES]
    want = torch.cat([F.linear(part, matrix) for part, matrix in zip(x.split(sizes), dense(module))])
    torch.testing.assert_close(module(x, sizes), want)


@torch.no_grad()
@pytest.mark.parametrize(("structure", "rank"), VARIANTS)
def test_arithmetic_falls_with_the_units_dropped(structure, rank, tokens):
    """A token of expert e costs r·(in + out) + n_e·width multiply-adds; elements save none, if any are kept."""
    module, *_ = linears(structure, rank)
    with FlopCounterMode(display=False) as whole:
        module(tokens, SIZES)
    if module.sparse is not None:
        module.sparse.keep(some(module.kept))
    with FlopCounterMode(display=False) as counter:
        module(tokens, SIZES)
    macs = sum(SIZES) * rank * (D_IN + D_OUT)
    if structure == "element":
        macs += sum(size for size, n in zip(SIZES, module.sparse.ptr.diff().tolist()) if n) * D_OUT * D_IN
    elif module.sparse is not None:
        width = module.sparse.width(D_OUT, D_IN)
        macs += sum(size * n * width for size, n in zip(SIZES, module.sparse.ptr.diff().tolist()))
        assert counter.get_total_flops() < whole.get_total_flops()
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_expert_lies_in_memory_as_it_will_after_reloading(structure):
    """A transposed view of the columns would be saved as a copy, and its products differ in the last bits."""
    s = torch.randn(1, D_OUT, D_IN)
    sparse: Any = FactorisedLinears.from_factors(s[..., :0], s[:, :0], s, structure).sparse
    assert sparse.values.is_contiguous()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_without_a_checkpoint_the_first_places_are_kept(structure):
    sparse: Any = FactorisedLinears(EXPERTS, D_IN, D_OUT, 2, structure, 20, 1.0).sparse
    places = sparse.places(D_OUT, D_IN)
    assert sparse.unit_expert().tolist() == [i // places for i in range(20)]
    assert sparse.index.tolist() == [i % places for i in range(20)]
