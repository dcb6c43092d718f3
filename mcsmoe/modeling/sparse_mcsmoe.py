"""S of K linear maps: a structured-sparse rest, of which some units are kept, beside low rank or alone.

This file travels beside the weights as remote code: it imports torch and the files beside it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .grouped_mcsmoe import Factors, grouped_linear, low_rank, pieces

CALLS = 2**23
"""Multiply-adds that take as long as the calls by which one expert's low rank and kept units are trained apart."""


class SparsePart(nn.Module):
    """S_e of K linear maps, of which some units (rows, columns or elements, by subclass) are kept.

    `values` [n, w] are the kept units, sorted by (expert, place); `index` [n] is the place of each in its
    expert's matrix (int32: half the bytes of an index of single elements); expert e owns `ptr[e]:ptr[e + 1]`.
    Without a checkpoint the first places are kept.
    """

    index: Tensor
    ptr: Tensor

    def __init__(self, experts: int, d_out: int, d_in: int, kept: int) -> None:
        super().__init__()
        self.shape = (experts, d_out, d_in)
        self.values = nn.Parameter(torch.zeros(kept, self.width(d_out, d_in)))
        places = self.places(d_out, d_in)
        self.register_buffer("index", (torch.arange(kept) % places).int())
        self.register_buffer("ptr", (torch.arange(experts + 1) * places).clamp(max=kept))

    @staticmethod
    def places(d_out: int, d_in: int) -> int:
        """Units of one expert's matrix before any is removed."""
        raise NotImplementedError

    @staticmethod
    def width(d_out: int, d_in: int) -> int:
        """Entries of one unit."""
        raise NotImplementedError

    @staticmethod
    def units(s: Tensor) -> Tensor:
        """All units [K·places, w] of s [K, out, in]."""
        raise NotImplementedError

    def fill(self, s: Tensor) -> None:
        """Take s [K, out, in] with all units kept."""
        places = self.places(*self.shape[1:])
        # Contiguous, as a reloaded tensor is: the last bits of products depend on it.
        self.values = nn.Parameter(self.units(s).contiguous())
        self.index = torch.arange(places, device=s.device, dtype=torch.int32).repeat(len(s))
        self.ptr = torch.arange(len(s) + 1, device=s.device) * places

    def dense(self) -> Tensor:
        """S [K, out, in]."""
        experts, d_out, d_in = self.shape
        if self.whole:
            return self.stacked(self.values)
        places = self.places(d_out, d_in)
        where = self.unit_expert() * places + self.index
        return self.stacked(
            self.values.new_zeros(experts * places, self.values.shape[1]).index_copy(0, where, self.values)
        )

    def stacked(self, units: Tensor) -> Tensor:
        """S [K, out, in] of all its units [K·places, w]."""
        return units.view(self.shape)

    def add_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> None:
        """y += S_e x of one expert: y [T, out], x [T, in], its units [n, w] and their places [n]."""
        raise NotImplementedError

    def gradients(self, grad: Tensor, x: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x [T, in] and of the units [n, w] of one expert, from that of y [T, out]."""
        raise NotImplementedError

    @property
    def whole(self) -> bool:
        """True while all units are kept."""
        return len(self.values) == self.shape[0] * self.places(*self.shape[1:])

    def forward(self, x: Tensor, sizes: Sequence[int], factors: Factors | None) -> Tensor:
        """(U V + S) x for tokens x [T, in] sorted by expert → [T, out]."""
        experts, d_out, d_in = self.shape
        rank = 0 if factors is None else factors[0].shape[2]
        in_dense = (len(x) + experts * rank) * d_out * d_in  # multiply-adds
        if self.whole or (torch.is_grad_enabled() and in_dense < experts * CALLS):
            s = self.dense()
            if factors is None:
                return grouped_linear(x, s, sizes)
            if experts * d_out * d_in < len(x) * (d_out + d_in):  # U V costs less than U and V on all tokens
                return grouped_linear(x, torch.baddbmm(s, *factors), sizes)
            return low_rank(x, factors, sizes, d_out) + grouped_linear(x, s, sizes)
        y = low_rank(x, factors, sizes, d_out)
        values, x = self.values.to(y.dtype), x.to(y.dtype)  # y is of another dtype under autocast
        if torch.is_grad_enabled():
            sums: Tensor = AddUnits.apply(y, x, values, sizes, self)
            return sums
        return self.add(y, x, values, sizes)

    def add(self, y: Tensor, x: Tensor, values: Tensor, sizes: Sequence[int]) -> Tensor:
        """y [T, out] += S x, for tokens x [T, in] sorted by expert."""
        for tokens, units in self.owned(sizes):
            self.add_one(y[tokens], x[tokens], values[units], self.index[units])
        return y

    def owned(self, sizes: Sequence[int]) -> Iterator[tuple[slice, slice]]:
        """Tokens and kept units of each expert that has both."""
        bounds = self.ptr.tolist()
        for expert, tokens in pieces(sizes):
            units = slice(bounds[expert], bounds[expert + 1])
            if units.start < units.stop:
                yield tokens, units

    def unit_expert(self) -> Tensor:
        """The expert that owns each kept unit, [n]."""
        return torch.repeat_interleave(self.ptr.diff(), output_size=len(self.values))

    @torch.no_grad()
    def keep(self, alive: Tensor) -> None:
        """Drop the units that are False in alive [n]; makes a new parameter `values`."""
        counts = torch.bincount(self.unit_expert()[alive], minlength=self.shape[0])
        self.values = nn.Parameter(self.values[alive])
        self.index = self.index[alive]
        self.ptr = F.pad(counts.cumsum(0), (1, 0))


class AddUnits(torch.autograd.Function):
    """`SparsePart.add` with one node in the graph for all experts."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, values: Tensor, sizes: Sequence[int], part: SparsePart) -> Tensor:
        """y [T, out], which is changed, tokens x [T, in] sorted by expert, units [n, w] → y."""
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, values)
        ctx.sizes, ctx.part = sizes, part
        return part.add(y, x, values, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, x and the units."""
        x, values = ctx.saved_tensors
        of_x, of_values = torch.zeros_like(x), torch.zeros_like(values)
        for tokens, units in ctx.part.owned(ctx.sizes):
            given = grads[0][tokens], x[tokens], values[units], ctx.part.index[units]
            of_x[tokens], of_values[units] = ctx.part.gradients(*given)
        return grads[0], of_x, of_values, None, None


class SparseRows(SparsePart):
    """Output neurons are kept: `values` [n, in]."""

    @staticmethod
    def places(d_out: int, d_in: int) -> int:
        """One row an output neuron."""
        return d_out

    @staticmethod
    def width(d_out: int, d_in: int) -> int:
        """A row has one entry an input."""
        return d_in

    @staticmethod
    def units(s: Tensor) -> Tensor:
        """Rows [K·out, in]."""
        return s.reshape(-1, s.shape[2])

    def add_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> None:
        """Kept outputs only: costs T·n·in."""
        if len(x) == 1:
            y[0].index_add_(0, index, torch.mm(x, values.t())[0].to(y.dtype))
        elif y.dtype == torch.float32:
            # index_add along rows is many times slower: it adds one column after the other.
            y.scatter_add_(1, index.long().expand(len(x), -1), torch.mm(x, values.t()).to(y.dtype))
        else:  # scatter_add converts one value after the other
            y.t().index_add_(0, index, torch.mm(values, x.t()).to(y.dtype))

    def gradients(self, grad: Tensor, x: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """As `add_one`."""
        kept = grad.gather(1, index.long().expand(len(x), -1))
        return torch.mm(kept, values), torch.mm(kept.t(), x)


class SparseColumns(SparsePart):
    """Inputs are kept: `values` [n, out]."""

    @staticmethod
    def places(d_out: int, d_in: int) -> int:
        """One column an input."""
        return d_in

    @staticmethod
    def width(d_out: int, d_in: int) -> int:
        """A column has one entry an output neuron."""
        return d_out

    @staticmethod
    def units(s: Tensor) -> Tensor:
        """Columns [K·in, out]."""
        return s.transpose(1, 2).reshape(-1, s.shape[1])

    def stacked(self, units: Tensor) -> Tensor:
        """[K, out, in]."""
        experts, d_out, d_in = self.shape
        return units.view(experts, d_in, d_out).mT

    def add_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> None:
        """Kept inputs only: costs T·n·out."""
        torch.addmm(y, x.index_select(1, index), values, out=y)

    def gradients(self, grad: Tensor, x: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """As `add_one`."""
        of_x = torch.zeros_like(x).scatter_(1, index.long().expand(len(x), -1), torch.mm(grad, values.t()))
        return of_x, torch.mm(x.index_select(1, index).t(), grad)


class SparseElements(SparsePart):
    """Single entries are kept, wherever they stand: `values` [n, 1]. Saves bytes, but no arithmetic."""

    @staticmethod
    def places(d_out: int, d_in: int) -> int:
        """One place an entry, row by row."""
        return d_out * d_in

    @staticmethod
    def width(d_out: int, d_in: int) -> int:
        """One entry a unit."""
        return 1

    @staticmethod
    def units(s: Tensor) -> Tensor:
        """Entries [K·out·in, 1], row by row."""
        return s.reshape(-1, 1)

    def add_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> None:
        """The matrix is built anew for each call: costs T·out·in."""
        torch.addmm(y, x, self.matrix(values, index).t(), out=y)

    def gradients(self, grad: Tensor, x: Tensor, values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """As `add_one`."""
        of_matrix = torch.mm(grad.t(), x)
        return torch.mm(grad, self.matrix(values, index)), of_matrix.flatten().index_select(0, index)[:, None]

    def matrix(self, values: Tensor, index: Tensor) -> Tensor:
        """S_e [out, in]."""
        _, d_out, d_in = self.shape
        return values.new_zeros(d_out * d_in).index_copy_(0, index.long(), values[:, 0]).view(d_out, d_in)


STRUCTURES: dict[str, type[SparsePart]] = {"row": SparseRows, "column": SparseColumns, "element": SparseElements}
"""What S is pruned by. The structure "none" has no S at all."""
