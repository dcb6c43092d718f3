"""PageSection and plot rows: how much each expert is used before merging and after it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcsmoe.grouping.plan import Plan
from mcsmoe.report.section import PageSection, section

DIGITS = 6
BEFORE, AFTER = "before", "after"


def use_rows(plan: Plan, frequency: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Return a row for each expert before merging, by `frequency` [E] of its layer, and for each merged expert.

    A merged expert takes the tokens of all its members, so its share is the sum of theirs. `group` is the index of
    the merged expert in its layer, null for a dropped expert; `dominant` marks the group's dominant expert.
    """
    rows: list[dict[str, Any]] = []
    for name, layer in plan.layers.items():
        shares, labels = frequency[name], layer.expert_map.tolist()
        dominants = {group.dominant for group in layer.groups}
        for expert, (share, label) in enumerate(zip(shares, labels, strict=True)):
            group = None if label < 0 else label
            rows.append(_row(BEFORE, name, expert, share, group, expert in dominants))
        for k, group_ in enumerate(layer.groups):
            rows.append(_row(AFTER, name, k, sum(shares[e] for e in group_.members), k, True))
    return rows


def _row(moment: str, layer: str, expert: int, share: float, group: int | None, dominant: bool) -> dict[str, Any]:
    values = {"moment": moment, "layer": layer, "expert": expert, "share": round(share, DIGITS)}
    return values | {"group": group, "dominant": dominant}


Rows = Sequence[Mapping[str, Any]]
"""Rows as `use_rows` returns them."""


@dataclass(frozen=True)
class UsedGroup:
    """One merged expert; `members` are (expert, share of the layer's selections), the dominant expert first."""

    members: tuple[tuple[int, float], ...]
    share: float

    @property
    def experts(self) -> list[int]:
        """Ids of the members, without shares."""
        return [expert for expert, _ in self.members]


@dataclass(frozen=True)
class Layer:
    """The groups of one layer in the order of the merged experts, and its dropped experts."""

    name: str
    groups: tuple[UsedGroup, ...]
    dropped: tuple[tuple[int, float], ...]

    @property
    def experts(self) -> int:
        """Number of experts before merging."""
        return sum(len(group.members) for group in self.groups) + len(self.dropped)

    @property
    def merged(self) -> bool:
        """Whether merging left fewer experts."""
        return len(self.groups) < self.experts


@dataclass(frozen=True)
class MethodUse:
    """The layers as grouped by one or more methods with equal groups."""

    methods: tuple[str, ...]
    layers: tuple[Layer, ...]


def groupings(uses: Mapping[str, Rows]) -> list[MethodUse]:
    """Return how methods group experts, without methods that merge nothing; those with equal groups share an entry."""
    found: dict[tuple[Layer, ...], list[str]] = {}
    for method, rows in uses.items():
        layers = tuple(_layer_use(name, rows) for name in dict.fromkeys(row["layer"] for row in rows))
        if any(layer.merged for layer in layers):
            found.setdefault(layers, []).append(method)
    return [MethodUse(tuple(methods), layers) for layers, methods in found.items()]


def use_section(found: Sequence[MethodUse]) -> PageSection:
    """Show how much experts are used in each grouping of `found`."""
    return section("Expert use and groups", "use.html", groupings=found)


def _layer_use(name: str, rows: Rows) -> Layer:
    before = [row for row in rows if row["layer"] == name and row["moment"] == BEFORE]
    after = [row for row in rows if row["layer"] == name and row["moment"] == AFTER]
    before.sort(key=lambda row: (not row["dominant"], -row["share"], row["expert"]))

    def members(group: int | None) -> tuple[tuple[int, float], ...]:
        return tuple((row["expert"], row["share"]) for row in before if row["group"] == group)

    groups = tuple(UsedGroup(members(row["group"]), row["share"]) for row in after)
    return Layer(name, groups, members(None))
