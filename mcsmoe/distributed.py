"""Fully sharded data parallelism (FSDP): a process holds its share of weights, gradients and optimiser states only.

`shard` spreads a model out and `fill` gathers it in its `hollow` copy; in between, `whole` and `placed` take single
tensors out of shards and into them. torch's `fully_shard` by itself: accelerate passes over FSDP in silence where there
is no GPU, and prepares one model, while distillation has two.
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
    """A copy without weights, to `fill` when the training of `model` in shards is over."""
    weights = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, weights)


def shard(model: Any, device: torch.device) -> None:
    """Leave each process its rows of every weight of `model`, on `device`; a block is whole while it runs.

    In place; every process must call it. Blocks move to `device` one after another.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in block_names(model, family_of(model.config).layers(model.config)):
        fully_shard(model.get_submodule(block), mesh=mesh)
    fully_shard(model, mesh=mesh)
    # An expert may have tokens in one process and none in another.
    model.set_reduce_scatter_unused_params(True)


def whole(values: Tensor) -> Tensor:
    """All of `values` in each process; every process must call it."""
    return values.full_tensor() if isinstance(values, DTensor) else values


def placed(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which all processes hold alike, where `like` lies: of a tensor in shards, this process's."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def fill(empty: Any, sharded: nn.Module) -> Any:
    """Put what all processes hold of `sharded` into its `hollow` copy, in CPU memory; every process must call it."""
    state = {name: whole(value).cpu() for name, value in sharded.state_dict().items()}
    empty.load_state_dict(state, assign=True)
    empty.tie_weights()
    return empty
