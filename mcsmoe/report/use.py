"""Section and plot rows: how much each expert is used before merging and after it, and what a layer loses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mcsmoe.grouping.plan import Plan
from mcsmoe.report.figure import ANNOTATED, inline
from mcsmoe.report.lost import lost_figure
from mcsmoe.report.section import PageSection, section

FEW = 8
"""With at most this many sparse layers, the page shows all of them at once; of more, a reader opens single ones."""

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

    @property
    def kept(self) -> list[tuple[int, float]]:
        """The dominant experts."""
        return [group.members[0] for group in self.groups]

    @property
    def joined(self) -> list[tuple[int, float]]:
        """The experts that were merged into a dominant one."""
        return [member for group in self.groups for member in group.members[1:]]

    @property
    def lost(self) -> float:
        """Share of the layer's selections that chose an expert which was merged into another one, or dropped."""
        return sum(share for _, share in [*self.joined, *self.dropped])

    @property
    def largest(self) -> int:
        """Number of experts in the largest group."""
        return max((len(group.members) for group in self.groups), default=0)

    @property
    def entropy(self) -> tuple[float, float]:
        """Entropy of use in bits before merging and after it; log₂ E where E experts are used equally."""
        before = [share for _, share in [*self.kept, *self.joined, *self.dropped]]
        return _entropy(before), _entropy([group.share for group in self.groups])

    @property
    def alone(self) -> list[tuple[int, float]]:
        """The experts that are the only ones of their group."""
        return [group.members[0] for group in self.groups if len(group.members) == 1]


@dataclass(frozen=True)
class MethodUse:
    """The layers as grouped by one or more methods with equal groups."""

    methods: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def by_loss(self) -> list[Layer]:
        """The layers, those that lose most first."""
        return sorted(self.layers, key=lambda layer: -layer.lost)

    @property
    def lost(self) -> float:
        """Share of selections, over all layers, whose expert was merged into another one or dropped."""
        return sum(layer.lost for layer in self.layers) / len(self.layers)

    @property
    def fits(self) -> bool:
        """Whether all layers can be shown at once, expert by expert."""
        return len(self.layers) <= FEW and all(layer.experts <= ANNOTATED for layer in self.layers)


def groupings(uses: Mapping[str, Rows]) -> list[MethodUse]:
    """Return how methods group experts, without methods that merge nothing; those with equal groups share an entry."""
    found: dict[tuple[Layer, ...], list[str]] = {}
    for method, rows in uses.items():
        of_layer: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            of_layer.setdefault(row["layer"], []).append(row)
        layers = tuple(_layer_use(name, each) for name, each in of_layer.items())
        if any(layer.merged for layer in layers):
            found.setdefault(layers, []).append(method)
    return [MethodUse(tuple(methods), layers) for layers, methods in found.items()]


def use_section(found: Sequence[MethodUse]) -> PageSection:
    """Show the layers of each grouping in `found`: in one picture where they do not fit, and each for itself."""
    pictures = [None if each.fits else _picture(each, i) for i, each in enumerate(found)]
    return section("Expert use and groups", "use.html", groupings=found, pictures=pictures, annotated=ANNOTATED)


def _picture(use: MethodUse, i: int) -> Markup:
    rows = {
        layer.name: [(share, state) for state in ("kept", "joined", "dropped") for _, share in getattr(layer, state)]
        for layer in use.layers
    }
    return inline(lost_figure(rows), f"use-{i}", f"experts that {', '.join(use.methods)} keeps, by layer and use")


def _entropy(shares: Sequence[float]) -> float:
    """Entropy in bits of `shares`, taken relative to their sum, because dropped experts leave less than 1."""
    total = sum(shares)
    used = [share / total for share in shares if share > 0]
    return sum(-share * math.log2(share) for share in used)


def _layer_use(name: str, rows: Rows) -> Layer:
    before = [row for row in rows if row["moment"] == BEFORE]
    after = [row for row in rows if row["moment"] == AFTER]
    before.sort(key=lambda row: (not row["dominant"], -row["share"], row["expert"]))
    members: dict[int | None, list[tuple[int, float]]] = {None: []}
    for row in before:
        members.setdefault(row["group"], []).append((row["expert"], row["share"]))
    groups = tuple(UsedGroup(tuple(members[row["group"]]), row["share"]) for row in after)
    return Layer(name, groups, tuple(members[None]))
