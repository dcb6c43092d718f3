"""K linear maps of one layer's experts: stacked dense, or low rank plus a structured-sparse rest.

This file travels beside the weights as remote code: it imports torch only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Factors = tuple[Tensor, Tensor]
"""u [K, out, r] and v [K, r, in]."""


def grouped_linear(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
    """Tokens x [T, in] sorted by expert, weight [K, out, in], tokens an expert (sum T) → [T, out]."""
    # unbind: the backward of weight[e] would build a zero [K, out, in] for each expert.
    parts = [F.linear(part, matrix) for part, matrix in zip(x.split(sizes), weight.unbind(0)) if len(part)]
    return joined(parts, x, weight.shape[1])


def joined(parts: list[Tensor], x: Tensor, d_out: int) -> Tensor:
    """Outputs of those experts that have tokens, one after another, for all tokens x [T, in] → [T, out]."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if parts else x.new_zeros(0, d_out)


def low_rank_linears(x: Tensor, factors: Factors | None, sizes: Sequence[int], d_out: int) -> list[Tensor]:
    """U_e V_e x of each expert e for its tokens of x [T, in], sorted by expert; zeros without factors."""
    parts = x.split(sizes)
    if factors is None:
        return [part.new_zeros(len(part), d_out) for part in parts]
    return [
        F.linear(F.linear(part, v), u) if len(part) else part.new_zeros(0, d_out)
        for part, u, v in zip(parts, *(factor.unbind(0) for factor in factors))
    ]


class StackedLinears(nn.Module):
    """K linear maps in one tensor `weight` [K, out, in]."""

    def __init__(self, experts: int, d_in: int, d_out: int, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))
        nn.init.normal_(self.weight, std=factor * d_in**-0.5)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Tokens x [T, in] sorted by expert, tokens an expert → [T, out]."""
        return grouped_linear(x, self.weight, sizes)


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
        """S [K, out, in] while all units are kept."""
        raise NotImplementedError

    def apply_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """y + S_e x of one expert: y [T, out], which may be changed in place, x [T, in], its units and their places."""
        raise NotImplementedError

    @property
    def whole(self) -> bool:
        """True while all units are kept."""
        return len(self.values) == self.shape[0] * self.places(*self.shape[1:])

    def forward(self, x: Tensor, sizes: Sequence[int], factors: Factors | None) -> Tensor:
        """(U V + S) x for tokens x [T, in] sorted by expert → [T, out]."""
        if self.whole:
            # Nothing is removed yet: one dense product costs less than two thin ones beside it.
            weight = self.dense()
            return grouped_linear(x, weight if factors is None else torch.baddbmm(weight, *factors), sizes)
        y = low_rank_linears(x, factors, sizes, self.shape[1])
        kept = self.ptr.diff().tolist()
        pieces = zip(y, x.split(sizes), self.values.split(kept), self.index.split(kept))
        return joined([self.apply_one(*piece) for piece in pieces if len(piece[0])], x, self.shape[1])

    def unit_expert(self) -> Tensor:
        """The expert that owns each kept unit, [n]."""
        return torch.repeat_interleave(self.ptr.diff())

    @torch.no_grad()
    def keep(self, alive: Tensor) -> None:
        """Drop the units that are False in alive [n]; makes a new parameter `values`."""
        counts = torch.bincount(self.unit_expert()[alive], minlength=self.shape[0])
        self.values = nn.Parameter(self.values[alive])
        self.index = self.index[alive]
        self.ptr = F.pad(counts.cumsum(0), (1, 0))


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

    def dense(self) -> Tensor:
        """[K, out, in]."""
        return self.values.view(self.shape)

    def apply_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """Kept outputs only: costs T·n·in."""
        rows = F.linear(x, values).to(y.dtype)  # under autocast it may be of another dtype than y
        # index_add along rows is many times slower: it adds one column after the other.
        return y.scatter_add_(1, index.long().expand(len(x), -1), rows)


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

    def dense(self) -> Tensor:
        """[K, out, in]."""
        experts, d_out, d_in = self.shape
        return self.values.view(experts, d_in, d_out).transpose(1, 2)

    def apply_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """Kept inputs only: costs T·n·out."""
        return y + x.index_select(1, index) @ values


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

    def dense(self) -> Tensor:
        """[K, out, in]."""
        return self.values.view(self.shape)

    def apply_one(self, y: Tensor, x: Tensor, values: Tensor, index: Tensor) -> Tensor:
        """The matrix is built anew for each call: costs T·out·in."""
        _, d_out, d_in = self.shape
        flat = values.new_zeros(d_out * d_in).index_put((index.long(),), values[:, 0])
        return y + F.linear(x, flat.view(d_out, d_in))


STRUCTURES: dict[str, type[SparsePart]] = {"row": SparseRows, "column": SparseColumns, "element": SparseElements}
"""What S is pruned by. The structure "none" has no S at all."""


class FactorisedLinears(nn.Module):
    """K linear maps W_e = U_e V_e + S_e (LoSparse, arXiv 2306.11222, eq. 4).

    `u` [K, out, r], `v` [K, r, in], absent at rank 0; `sparse` holds S, absent for the structure "none".
    """

    def __init__(
        self, experts: int, d_in: int, d_out: int, rank: int, structure: str, kept: int, factor: float
    ) -> None:
        super().__init__()
        self.rank, self.structure, self.d_out = rank, structure, d_out
        self.u: nn.Parameter | None = None
        self.v: nn.Parameter | None = None
        self.sparse: SparsePart | None = None
        if rank > 0:
            self.u = nn.Parameter(torch.empty(experts, d_out, rank))
            self.v = nn.Parameter(torch.empty(experts, rank, d_in))
            nn.init.normal_(self.u, std=rank**-0.5)
            nn.init.normal_(self.v, std=factor * d_in**-0.5)
        if structure != "none":
            self.sparse = STRUCTURES[structure](experts, d_out, d_in, kept)

    @classmethod
    def from_factors(cls, u: Tensor, v: Tensor, s: Tensor, structure: str) -> "FactorisedLinears":
        """From u [K, out, r], v [K, r, in] and s [K, out, in], with all of S kept, or none of it."""
        experts, d_out, d_in = s.shape
        with torch.device("meta"):
            module = cls(experts, d_in, d_out, u.shape[2], structure, 0, 1.0)
        if module.u is not None:
            module.u, module.v = nn.Parameter(u), nn.Parameter(v)
        if module.sparse is not None:
            module.sparse.fill(s)
        return module

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Tokens x [T, in] sorted by expert, tokens an expert → [T, out]."""
        factors = None if self.u is None or self.v is None else (self.u, self.v)
        if self.sparse is None:
            return joined(low_rank_linears(x, factors, sizes, self.d_out), x, self.d_out)
        # All in the forward of S: offloaded weights are in memory only while the module that owns them runs.
        sums: Tensor = self.sparse(x, sizes, factors)
        return sums

    @property
    def kept(self) -> int:
        """Units of S kept over all experts."""
        return 0 if self.sparse is None else len(self.sparse.values)
