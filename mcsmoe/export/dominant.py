"""A group is selected as its dominant expert was."""

from torch import Tensor

from mcsmoe.export.registry import ROWS, RouterData


@ROWS.register("dominant")
def dominant(data: RouterData) -> Tensor:
    """The row of each group's dominant expert, bit by bit: [K, p]."""
    return data.rows[list(data.dominants)].double()
