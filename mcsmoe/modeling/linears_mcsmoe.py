"""K linear maps of one layer's experts: stacked dense, or low rank plus a structured-sparse rest.

This file travels beside the weights as remote code: it imports torch and the files beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .grouped_mcsmoe import grouped_linear, low_rank
from .sparse_mcsmoe import STRUCTURES, SparsePart


class StackedLinears(nn.Module):
    """K linear maps in one tensor `weight` [K, out, in]."""

    def __init__(self, experts: int, d_in: int, d_out: int, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, d_out, d_in))
        nn.init.normal_(self.weight, std=factor * d_in**-0.5)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Tokens x [T, in] sorted by expert, tokens an expert → [T, out]."""
        return grouped_linear(x, self.weight, sizes)


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
            return low_rank(x, factors, sizes, self.d_out)
        # All in the forward of S: offloaded weights are in memory only while the module that owns them runs.
        sums: Tensor = self.sparse(x, sizes, factors)
        return sums

    @property
    def kept(self) -> int:
        """Units of S kept over all experts."""
        return 0 if self.sparse is None else len(self.sparse.values)
