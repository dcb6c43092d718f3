"""Fully sharded data parallelism (FSDP): each process holds only its share of weights, gradients and optimiser states.

`shard` spreads a model over the processes, and `fill` gathers it into its `hollow` copy. In between, `whole` gathers a
single tensor, and `placed` shards one. This uses torch's `fully_shard` directly: accelerate silently skips FSDP
without a GPU and prepares only one model, while distillation has two.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mcsmoe.checkpoint.streamed import block_names
from mcsmoe.families import family_of


def hollow(model: nn.Module) -> Any:
    """A copy of `model` with its parameters on the meta device, for `fill` to fill after sharded training."""
    weights = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, weights)


def shard(model: Any, device: torch.device) -> None:
    """Shard `model` in place: each process keeps its rows of every weight, on `device`; a block is whole while it runs.

    Every process must call it. Blocks move to `device` one after another.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in block_names(model, family_of(model.config).layers(model.config)):
        fully_shard(model.get_submodule(block), mesh=mesh)
    fully_shard(model, mesh=mesh)
    # An expert that gets no tokens in this process still takes part in the reduction: it may get some in another.
    model.set_reduce_scatter_unused_params(True)


def whole(values: Tensor) -> Tensor:
    """Gather all of `values` in each process; an unsharded tensor stays as it is. Every process must call it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def local(values: Tensor) -> Tensor:
    """The rows of `values` that this process holds; an unsharded tensor stays as it is."""
    return values.to_local() if isinstance(values, DTensor) else values


def placed(value: Tensor, like: Tensor) -> Tensor:
    """Move `value` to the device of `like`; if `like` is sharded, keep only this process's shard.

    All processes must hold the same `value`.
    """
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def fill(empty: Any, sharded: nn.Module) -> Any:
    """Gather `sharded` into its `hollow` copy `empty` in CPU memory, and return that; every process must call it."""
    state = {name: whole(value).cpu() for name, value in sharded.state_dict().items()}
    empty.load_state_dict(state, assign=True)
    empty.tie_weights()
    return empty
