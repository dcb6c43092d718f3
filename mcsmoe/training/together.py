"""N processes train as one: sums over the whole batch, random numbers of their own, no step for what none uses.

Each process sees its rows of a batch and computes the loss of all of them, from sums over all processes. So it records
the same values as a single process, and the gradients, averaged over processes, are those of the whole batch.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from mcsmoe.calibration.watch import real_tokens
from mcsmoe.distributed import local
from mcsmoe.tasks.batches import IGNORED, Batch


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, share: Tensor) -> Tensor:
        total = share.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * distributed.get_world_size()


def summed(share: Tensor) -> Tensor:
    """The sum of all processes' `share`, which every process must call for; a single process gets its own back.

    A share's gradient is multiplied by the number of processes, because they average their gradients: with L(a + b)
    on two processes, (2·∂L/∂a + 2·∂L/∂b) / 2 = ∂L/∂a + ∂L/∂b.
    """
    if not distributed.is_initialized():
        return share
    total: Tensor = _Summed.apply(share)
    return total


def mean(total: Tensor, count: Tensor) -> Tensor:
    """`total` / `count`, both scalars and summed over all processes first; 0 where nothing counts."""
    total, count = summed(torch.stack([total, count.to(total.dtype)]))
    return total / count.clamp(min=1)


def counted_tokens(batch: Batch, causal: bool) -> dict[str, Tensor]:
    """The masks of `real_tokens`, without rows that have no label: another process has them, too (see `own_rows`)."""
    counted = (batch["labels"] != IGNORED).any(1, keepdim=True)  # [B, 1]
    return {stack: mask & counted for stack, mask in real_tokens(batch, causal).items()}


def own_rows(batch: Batch, process: int, processes: int) -> Batch:
    """The rows of a batch for process number `process`: of rows 0 … 4, process 1 of 2 has 1 and 3.

    They keep the padding of the whole batch, which some means count. A process without rows takes the first, with all
    labels `IGNORED`: it must run the model as the others do.
    """
    idle = process >= len(batch["labels"])
    rows = {name: value[:1] if idle else value[process::processes] for name, value in batch.items()}
    if idle:
        rows["labels"] = torch.full_like(rows["labels"], IGNORED)
    return {name: value.contiguous() for name, value in rows.items()}


def draw_apart(seed: int, process: int) -> None:
    """Let each process draw random numbers of its own for dropout and router jitter, the first as if it were alone."""
    if process > 0:
        torch.manual_seed(seed + process)


@contextmanager
def unused_without_gradient(model: nn.Module) -> Iterator[None]:
    """Run a forward and a backward pass of a sharded `model` in this context; all processes must.

    Modules that no process ran, such as experts without tokens, have a gradient of zeros if they are sharded, and
    would decay and move on by momentum. It is taken away, since unsharded they have none.
    """
    owners = {module: list(module.parameters(recurse=False)) for module in model.modules()}
    owners = {module: parameters for module, parameters in owners.items() if parameters}
    ran: set[nn.Module] = set()
    with ExitStack() as stack:
        for module in owners:
            stack.callback(module.register_forward_pre_hook(lambda module, inputs: ran.add(module)).remove)
        yield
    with torch.no_grad():
        # A gradient tells of a weight that is used outside of its module's forward method.
        used = [m in ran or any(p.grad is not None and local(p.grad).any() for p in ps) for m, ps in owners.items()]
        anywhere = summed(torch.tensor(used, dtype=torch.float32, device=next(model.parameters()).device))
    for parameters, somewhere in zip(owners.values(), anywhere.tolist(), strict=True):
        for parameter in () if somewhere else parameters:
            parameter.grad = None
