"""Section: how much each expert is used before merging, and the merged experts after it; who joins whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcsmoe.evaluation.use import AFTER, BEFORE
from mcsmoe.report.section import Section, section

Rows = Sequence[Mapping[str, Any]]
"""As `mcsmoe.evaluation.use.use_rows` makes them."""


@dataclass(frozen=True)
class Group:
    """One merged expert: `members` are (expert, share of the layer's tokens), the dominant one first."""

    members: tuple[tuple[int, float], ...]
    share: float

    @property
    def experts(self) -> list[int]:
        """Members without their shares."""
        return [expert for expert, _ in self.members]


@dataclass(frozen=True)
class Layer:
    """The groups of one layer in the order of the merged experts, and experts in none."""

    name: str
    groups: tuple[Group, ...]
    dropped: tuple[tuple[int, float], ...]

    @property
    def experts(self) -> int:
        """Experts before merging."""
        return sum(len(group.members) for group in self.groups) + len(self.dropped)

    @property
    def merged(self) -> bool:
        """Whether there are fewer experts than before."""
        return len(self.groups) < self.experts


@dataclass(frozen=True)
class Grouping:
    """Layers as one or more methods group them."""

    methods: tuple[str, ...]
    layers: tuple[Layer, ...]


def groupings(uses: Mapping[str, Rows]) -> list[Grouping]:
    """How methods group experts, without those that merge nothing; methods with equal groups stand together."""
    found: dict[tuple[Layer, ...], list[str]] = {}
    for method, rows in uses.items():
        layers = tuple(_layer(name, rows) for name in dict.fromkeys(row["layer"] for row in rows))
        if any(layer.merged for layer in layers):
            found.setdefault(layers, []).append(method)
    return [Grouping(tuple(methods), layers) for layers, methods in found.items()]


def use_section(found: Sequence[Grouping]) -> Section:
    """The use of experts by each of `groupings`."""
    return section("Expert use and groups", "use.html", groupings=found)


def _layer(name: str, rows: Rows) -> Layer:
    before = [row for row in rows if row["layer"] == name and row["moment"] == BEFORE]
    after = [row for row in rows if row["layer"] == name and row["moment"] == AFTER]
    # The dominant expert first, the others by how much they are used.
    before.sort(key=lambda row: (not row["dominant"], -row["share"], row["expert"]))

    def members(group: int | None) -> tuple[tuple[int, float], ...]:
        return tuple((row["expert"], row["share"]) for row in before if row["group"] == group)

    groups = tuple(Group(members(row["group"]), row["share"]) for row in after)
    return Layer(name, groups, members(None))
