"""A part of a tensor on its way to the disk."""

from typing import NamedTuple

from torch import Tensor


class Piece(NamedTuple):
    """All values of a tensor, or of one entry along its first axis, or of a slice of them."""

    tensor: str
    entry: int | slice | None
    value: Tensor
