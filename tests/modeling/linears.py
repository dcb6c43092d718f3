"""What a weight of the experts computes with, entry by entry."""

from typing import Any

import torch
from torch import Tensor

from mcsmoe.modeling.linears_mcsmoe import StackedLinears
from mcsmoe.modeling.sparse_mcsmoe import SparsePart


def dense(linears: Any) -> Tensor:
    """The weight [K, out, in] of stacked or factorised linear maps."""
    if isinstance(linears, StackedLinears):
        return linears.weight.detach()
    rest = None if linears.sparse is None else dense_sparse(linears.sparse, linears.structure)
    if linears.u is None:
        assert rest is not None
        return rest
    low = (linears.u @ linears.v).detach()
    return low if rest is None else low + rest


def dense_sparse(sparse: SparsePart, structure: str) -> Tensor:
    """S [K, out, in] of the units that are kept."""
    d_in = sparse.shape[2]
    s = torch.zeros(sparse.shape, dtype=sparse.values.dtype)
    for expert, place, values in zip(sparse.unit_expert().tolist(), sparse.index.tolist(), sparse.values.detach()):
        if structure == "row":
            s[expert, place] = values
        elif structure == "column":
            s[expert, :, place] = values
        else:
            s[expert, place // d_in, place % d_in] = values[0]
    return s
