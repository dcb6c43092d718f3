"""Writing the weights of a checkpoint, in one file or in shards; a resumed run skips finished shards."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mcsmoe.checkpoint.output import check_room, settle, write_json
from mcsmoe.checkpoint.reader import INDEX, WEIGHTS
from mcsmoe.checkpoint.resume import Store
from mcsmoe.checkpoint.writer import Piece, TensorSpec, Written, differing, write_safetensors
from mcsmoe.progress import progress

SHARD_BYTES = 5 * 10**9
"""Weights up to this size go into one file. The limit of transformers is ten times as high: with shards that large, an
interruption would lose most of the work."""


@dataclass(frozen=True)
class Part:
    """Tensors that are written together, such as those of one layer's experts. `pieces()` makes their values."""

    name: str
    specs: Mapping[str, TensorSpec]
    pieces: Callable[[], Iterable[Piece]]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(spec.size_bytes for spec in self.specs.values())


def other_parts(specs: Mapping[str, TensorSpec], read: Callable[[str], Tensor]) -> list[Part]:
    """Parts of whole tensors, at most `SHARD_BYTES` each; a larger tensor is a part of its own. `read` gives values."""
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
    """Write all parts into `directory`: one file up to `SHARD_BYTES` in total, else one shard per part and an index.

    Returns content hashes of what was written; `store` keeps those of each shard. A shard gets its final name once its
    bytes are on the disk. A shard that holds what the store says is not written again and its pieces are not made: the
    caller guarantees that it came from the same data. Peak memory is that of the pieces. A progress bar called
    `description` counts the bytes. Raises what `write_safetensors` raises.
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
        ours = store.load(name).values if store and name in store else None
        if ours is not None and _holds(directory / name, ours):
            written |= ours
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


def _holds(shard: Path, written: Written) -> bool:
    """Whether a shard is on the disk as it was written."""
    try:
        with safe_open(shard, "pt") as file:
            names = sorted(file.keys())
            return names == sorted(written) and not any(differing(written, n, file.get_tensor(n)) for n in names)
    except (SafetensorError, OSError):
        return False


def _bytes_of(parts: Iterable[Part], description: str) -> Any:
    return progress(None, f"{description}, bytes", sum(part.size_bytes for part in parts), unit="B")


def _counted(pieces: Iterable[Piece], bar: Any) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        bar.update(piece.value.nbytes)
