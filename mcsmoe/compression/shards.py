"""Tensors of which each process holds some rows, as `fully_shard` of torch leaves them, beside ordinary ones."""

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(values: Tensor) -> Tensor:
    """All of `values` in each process; every process must call it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def placed(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which all processes hold alike, where `like` lies: of a tensor in shards, this process's."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
