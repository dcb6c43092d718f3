"""Where forward passes side by side have come to, on disk, so that an interrupted run goes on from there."""

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
"""The note of what was passed."""


class Call(NamedTuple):
    """What a pass asks for: a block on arguments."""

    block: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def owner(self) -> str:
        """The list that has the block."""
        return _owner(self.block)


class _UnknownError(Exception):
    """An output that is more than tensors."""


class Journal:
    """What each pass got out of the last block that all have passed, of each list of blocks, in `store`.

    Another run gives that out for all blocks of the list up to this one: no model looks at what came out of a block
    after it was put into the next. Arguments of the block that follows must then be what they were, bit by bit.
    Whoever opens a journal vouches that model and passes are those it was written with. Disk: twice what passes keep
    between two blocks. A model whose blocks give out anything but tensors and None has no journal, and starts anew.
    """

    def __init__(self, store: Store, device: torch.device | str = "cpu") -> None:
        self._store, self._device = store, device
        self._usable = True
        self.blocks: list[str] = []
        """Those passed in an earlier run or this one."""
        self._arguments: list[str | None] = []
        if PASSED in store:
            self.blocks, self._arguments = store.load(PASSED).values

    def keep(self, block: str, i: int, output: Any) -> None:
        """Take what pass i got out of `block`. Raises `DiskFullError`."""
        tensors: list[Tensor] = []
        try:
            structure = _take_apart(output, tensors)
        except _UnknownError:
            self._usable = False
            return
        self._store.keep(_note(block, i), {str(n): value for n, value in enumerate(tensors)}, structure)

    def passed(self, block: str, calls: Sequence[Call | None]) -> None:
        """All passes came out of `block` and are at `calls` now."""
        if not self._usable or not any(calls):
            return
        before = self._last(_owner(block))
        self.blocks = [*self.blocks, block]
        self._arguments = [call and _digest(call) for call in calls]
        self._store.keep(PASSED, {}, [self.blocks, self._arguments])
        for i in range(len(calls)) if before else ():
            self._store.drop(_note(before, i))

    def output(self, owner: str, i: int) -> Any:
        """What pass i got out of the last block of the list `owner` that was passed."""
        kept, structure = self._store.load(_note(self._last(owner), i))
        # Where a tensor starts decides kernels, too: a file has them anywhere.
        tensors = [kept[str(n)].clone().to(self._device) for n in range(len(kept))]
        return _put_together(structure, tensors)

    def check(self, i: int, call: Call | None) -> None:
        """Raise `CheckpointError` unless pass i is where it was."""
        if self.blocks and (call and _digest(call)) != self._arguments[i]:
            raise CheckpointError("forward passes do not go on as they stopped; run again, it starts anew")

    def _last(self, owner: str) -> str:
        return next((block for block in reversed(self.blocks) if _owner(block) == owner), "")


def _note(block: str, i: int) -> str:
    return f"{block}.{i}.pass"


def _owner(block: str) -> str:
    return block.rpartition(".")[0]


def _take_apart(value: Any, tensors: list[Tensor]) -> Any:
    """The structure of an output in JSON; its tensors are put into `tensors`, as they lie in memory: [numbers]."""
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
    """Whether a tensor has all of the memory from its first element to its last, and each element once."""
    axes = sorted((stride, size) for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1)
    return all(stride == math.prod(size for _, size in axes[:i]) for i, (stride, _) in enumerate(axes))


def _digest(call: Call) -> str:
    """A hash of all tensors and plain values in the arguments, and how the tensors lie in memory."""
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
