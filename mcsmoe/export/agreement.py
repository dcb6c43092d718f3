"""How often K router rows send a token where the router over all experts sent it."""

import torch
from torch import Tensor

from mcsmoe.export.registry import RouterData


def agreement(data: RouterData, rows: Tensor) -> float:
    """Share of tokens whose largest of K logits, by `rows` [K, p], is that of the group with the largest of E logits.

    Corrections that some routers add for the selection alone do not count, on either side.
    """
    label = torch.full((data.logits.shape[1],), -1)
    for k, group in enumerate(data.members):
        label[list(group)] = k
    before = label[data.logits.masked_fill(label < 0, float("-inf")).argmax(1)]
    after = (data.inputs.double() @ rows.T).argmax(1)
    return float((before == after).double().mean())
