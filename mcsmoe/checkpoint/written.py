"""What was given to the files of a checkpoint, so that what lies there can be told from anything else."""

from collections.abc import Iterable

from torch import Tensor
from xxhash import xxh3_128_hexdigest

from mcsmoe.checkpoint.notes import raw
from mcsmoe.checkpoint.piece import Piece

Written = dict[str, dict[str, str]]
"""Tensor → its pieces, "start:stop" along the first axis or "" for all of it → hash of the bytes in memory; JSON."""


def written_pieces(pieces: Iterable[Piece]) -> Written:
    """Hashes of pieces, one of which is in memory at a time."""
    written: Written = {}
    for piece in pieces:
        add(written, piece)
    return written


def add(written: Written, piece: Piece) -> None:
    """Enter one more piece."""
    written.setdefault(piece.tensor, {})[_place(piece.entry)] = _hash(piece.value)


def differing(written: Written, name: str, value: Tensor) -> str | None:
    """The first piece of a whole tensor that is not what was written; None where all are."""
    for place, expected in written.get(name, {}).items():
        found = value[slice(*map(int, place.split(":")))] if place else value
        if _hash(found) != expected:
            return f"{name}[{place}]" if place else name
    return None


def _place(entry: int | slice | None) -> str:
    if entry is None:
        return ""
    return f"{entry}:{entry + 1}" if isinstance(entry, int) else f"{entry.start}:{entry.stop}"


def _hash(value: Tensor) -> str:
    return xxh3_128_hexdigest(raw(value))
