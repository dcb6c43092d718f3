"""The weights of a checkpoint, in one file or in shards; shards that are finished are not written again."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from mcsmoe.checkpoint.output import check_room, settle, write_json
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS
from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, write_safetensors
from mcsmoe.progress import progress

SHARD_BYTES = 5 * 10**9
"""Weights up to this size are one file. transformers' own limit, ten times that, would leave little to go on with
after an interruption."""


@dataclass(frozen=True)
class Part:
    """Tensors that are written together: those of one sparse layer's experts, or others. `pieces()` makes them."""

    name: str
    specs: Mapping[str, TensorSpec]
    pieces: Callable[[], Iterable[Piece]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.size_bytes for spec in self.specs.values())


def other_parts(specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]) -> list[Part]:
    """Whole tensors as parts of at most `SHARD_BYTES` each (or one tensor, where that is larger)."""
    bins: list[dict[str, TensorSpec]] = []
    size = 0
    for name in sorted(specs):
        size += specs[name].size_bytes
        if not bins or size > SHARD_BYTES:
            bins.append({})
            size = specs[name].size_bytes
        bins[-1][name] = specs[name]
    return [Part("all but experts", names, partial(_whole, names, read)) for names in bins]


def _whole(names: Iterable[str], read: Callable[[str], Tensor]) -> Iterator[Piece]:
    return (Piece(name, None, read(name)) for name in names)


def write_parts(
    directory: Path, parts: Sequence[Part], description: str = "write", store: Store | None = None
) -> Written:
    """Write all parts into `directory`: as one file up to `SHARD_BYTES`, else each as a shard, and their index.

    Gives what was written; `store` keeps that of each shard. A shard gets its name when its bytes are on the disk; one
    that has its name and is in the store is taken as it is, and its pieces are not asked for: who calls vouches that
    it was written from the same. Peak memory is that of the pieces. Bytes written, of those still to write, show as
    progress of `description`. Raises what `write_safetensors` raises.
    """
    if sum(part.size_bytes for part in parts) <= SHARD_BYTES:
        specs = {name: spec for part in parts for name, spec in part.specs.items()}
        with _bytes_of(parts, description) as bar:
            pieces = chain.from_iterable(part.pieces() for part in parts)
            return write_safetensors(directory / WEIGHTS, specs, _counted(pieces, bar))
    files = {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, 1)}
    written: Written = {}
    todo = dict(files)
    for name in files:
        if store and name in store and (directory / name).is_file():
            written |= store.load(name).values
            del todo[name]
    check_room(directory / INDEX, sum(part.size_bytes for part in todo.values()))
    if 0 < len(todo) < len(files):
        finished = len(files) - len(todo)
        print(f"resuming at {next(iter(todo.values())).name}: {finished} of {len(files)} shards were written before")
    with _bytes_of(todo.values(), description) as bar:
        for name, part in todo.items():
            unfinished = directory / f".{name}"
            ours = write_safetensors(unfinished, part.specs, _counted(part.pieces(), bar))
            written |= ours
            if store:
                store.keep(name, {}, ours)
            settle(unfinished, directory / name)
    weight_map = {tensor: name for name, part in files.items() for tensor in part.specs}
    total = sum(part.size_bytes for part in parts)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return written


def _bytes_of(parts: Iterable[Part], description: str) -> Any:
    return progress(None, f"{description}, bytes", sum(part.size_bytes for part in parts), unit="B")


def _counted(pieces: Iterable[Piece], bar: Any) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        bar.update(piece.value.nbytes)
