"""Progress of the forward passes in `lockstep`, kept on disk so that an interrupted run can resume."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from xxhash import xxh3_128

from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.writer import raw
from mcsmoe.errors import CheckpointError

PASSED = "passed"
"""Name of the note that lists the finished blocks."""


class Call(NamedTuple):
    """A pass's request to run a block on these arguments."""

    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def owner(self) -> str:
        """The module list that holds the block: `model.layers` of `model.layers.3`."""
        return _owner(self.block)


class _UnknownError(Exception):
    """A block's output holds something other than tensors and None."""


class Journal:
    """For each list of blocks, what every pass got from the last block that all passes have finished, in `store`.

    A resumed run returns this output for every block of the list up to that one. That is enough, because a model
    uses a block's output only as the input of the next block. `check` then compares the arguments of the next block
    with the recorded ones, bit by bit. The caller must reopen a journal with the same model and the same passes.
    Disk use: twice what the passes keep between two blocks. Recording stops at a block that returns anything but
    tensors and None.
    """

    def __init__(self, store: Store, device: torch.device | str = "cpu") -> None:
        self._store, self._device = store, device
        self._usable = True
        self.blocks: list[str] = []
        """Blocks that all passes have finished, in this run or an earlier one."""
        self._arguments: list[str | None] = []
        if PASSED in store:
            self.blocks, self._arguments = store.load(PASSED).values

    def keep(self, block: str, i: int, output: Any) -> None:
        """Record what pass i got from `block`. Raises `DiskFullError`."""
        tensors: list[Tensor] = []
        try:
            structure = _take_apart(output, tensors)
        except _UnknownError:
            self._usable = False
            return
        self._store.keep(_note(block, i), {str(n): value for n, value in enumerate(tensors)}, structure)

    def passed(self, block: str, calls: Sequence[Call | None]) -> None:
        """Record that all passes have finished `block` and now wait at `calls`."""
        if not self._usable or not any(calls):
            return
        before = self._last(_owner(block))
        self.blocks = [*self.blocks, block]
        self._arguments = [call and _digest(call) for call in calls]
        self._store.keep(PASSED, {}, [self.blocks, self._arguments])
        for i in range(len(calls)) if before else ():
            self._store.drop(_note(before, i))

    def output(self, owner: str, i: int) -> Any:
        """What pass i got from the last finished block of the list `owner`."""
        kept, structure = self._store.load(_note(self._last(owner), i))
        # Clone, because a tensor in a file may start anywhere, and its alignment can change which kernel runs.
        tensors = [kept[str(n)].clone().to(self._device) for n in range(len(kept))]
        return _put_together(structure, tensors)

    def check(self, i: int, call: Call | None) -> None:
        """Raise `CheckpointError` unless pass i waits at the recorded call."""
        if self.blocks and (call and _digest(call)) != self._arguments[i]:
            raise CheckpointError("forward passes do not go on as they stopped; run again, it starts anew")

    def _last(self, owner: str) -> str:
        return next((block for block in reversed(self.blocks) if _owner(block) == owner), "")


def _note(block: str, i: int) -> str:
    return f"{block}.{i}.pass"


def _owner(block: str) -> str:
    return block.rpartition(".")[0]


def _take_apart(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of an output as JSON values; its tensors are appended to `tensors`, flat in memory order."""
    if isinstance(value, Tensor) and _is_dense(value):
        tensors.append(value.as_strided((value.numel(),), (1,)))
        return {"number": len(tensors) - 1, "shape": value.shape, "stride": value.stride()}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return [_take_apart(each, tensors) for each in value]
    if value is None:
        return None
    raise _UnknownError


def _put_together(structure: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(structure, list):
        return tuple(_put_together(each, tensors) for each in structure)
    if structure is None:
        return None
    return tensors[structure["number"]].as_strided(structure["shape"], structure["stride"])


def _is_dense(value: Tensor) -> bool:
    """Whether the tensor fills its memory from first to last element without gaps or overlaps."""
    axes = sorted((stride, size) for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1)
    return all(stride == math.prod(size for _, size in axes[:i]) for i, (stride, _) in enumerate(axes))


def _digest(call: Call) -> str:
    """Hash of the tensors and plain values in the arguments, including dtypes, shapes and strides."""
    digest = xxh3_128()
    for part in _parts([call.block, call.args, call.kwargs]):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Tensor):
        yield f"{value.dtype} {list(value.shape)} {value.stride()}".encode()
        yield raw(value.cpu())
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _parts([key, each])
    elif isinstance(value, (list, tuple)):
        yield f"{len(value)}".encode()
        for each in value:
            yield from _parts(each)
    else:
        yield (repr(value) if isinstance(value, (str, int, float, NoneType)) else type(value).__name__).encode()
