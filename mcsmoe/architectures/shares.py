"""What the tensors of a stock checkpoint hold of each expert."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from mcsmoe.architectures.layer import MoELayer


class Share(NamedTuple):
    """One expert's share of a tensor: those `names` of the layout that lie in it.

    `entry` is its place, or its places, along the first axis of a stack, None where the whole tensor is the expert's.
    """

    tensor: str
    entry: int | slice | None
    expert: int
    names: tuple[str, ...]


def expert_shares(layer: MoELayer, experts: int) -> Iterator[Share]:
    """The shares of the first `experts` experts of a layer, expert by expert."""
    for e in range(experts):
        held: dict[str, list[str]] = defaultdict(list)
        for name, place in layer.places.items():
            held[place.name(e)].append(name)
        for tensor, names in held.items():
            place = layer.places[names[0]]
            yield Share(tensor, place.index(e) if place.stacked else None, e, tuple(names))
