"""Plans for people: what becomes of the experts of each layer, and in what two plans differ."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mcsmoe.errors import PlanError, UnknownNameError
from mcsmoe.grouping.plan import LayerPlan, Plan
from mcsmoe.report.plain import aligned, facts
from mcsmoe.report.table import percent

SETTINGS = ("method", "rule", "alignment", "reference", "keep", "excluded")
"""Fields of a plan besides its layers."""


@dataclass(frozen=True)
class LayerOutline:
    """One layer of a plan.

    - `largest`: number of members of the largest group; `dropped`: experts in no group.
    - `in_groups`: share of the layer's importance (by default its activation frequency) that lies with experts in
      groups of two or more; `given_up`: with experts that are not the dominant one of their group. None if it is all 0.
    """

    experts: int
    kept: int
    dropped: int
    largest: int
    in_groups: float | None
    given_up: float | None

    @classmethod
    def of(cls, layer: LayerPlan) -> "LayerOutline":
        """The outline of a layer."""
        pairs = [(group, dict(zip(group.members, group.weights, strict=True))) for group in layer.groups]
        total = sum(sum(weights.values()) for _, weights in pairs)
        merged = sum(sum(weights.values()) for group, weights in pairs if len(group.members) > 1)
        dominant = sum(weights[group.dominant] for group, weights in pairs)
        return cls(
            experts=len(layer.expert_map),
            kept=len(layer.groups),
            dropped=len(layer.dropped),
            largest=max((len(group.members) for group in layer.groups), default=0),
            in_groups=round(merged / total, 6) if total else None,
            given_up=round(1 - dominant / total, 6) + 0.0 if total else None,
        )


def outline(plan: Plan) -> dict[str, Any]:
    """The plan's settings, its totals, and a `LayerOutline` by layer, as plain JSON values."""
    layers = {name: asdict(LayerOutline.of(layer)) for name, layer in plan.layers.items()}
    totals = {name: sum(layer[name] for layer in layers.values()) for name in ("experts", "kept", "dropped")}
    return _settings(plan) | totals | {"layers": layers}


def shown(plan: Plan) -> str:
    """The plan as text: settings, totals, and a line for each layer."""
    outlines = {name: LayerOutline.of(layer) for name, layer in plan.layers.items()}
    kept, experts = sum(each.kept for each in outlines.values()), sum(each.experts for each in outlines.values())
    rows = [["layer", "experts", "kept", "largest group", "in groups", "given up"]]
    for name, each in outlines.items():
        shares = ["–" if share is None else percent(share) for share in (each.in_groups, each.given_up)]
        rows.append([name, str(each.experts), str(each.kept), str(each.largest), *shares])
    pairs = [("experts", f"{kept} of {experts} kept in {len(outlines)} layers")]
    dropped = sum(each.dropped for each in outlines.values())
    if dropped:
        pairs.append(("dropped", f"{dropped} experts, to which the router gives no probability"))
    if plan.keep is not None:
        pairs.append(("keep", f"experts are dropped during distillation until {plan.keep} are left"))
    pairs += [("rule", plan.rule), ("alignment", f"{plan.alignment}, to the {plan.reference} expert of a group")]
    if plan.excluded:
        pairs.append(("left alone", ", ".join(plan.excluded)))
    note = "in groups: share of importance that experts in groups of two or more have; given up: all but dominant ones"
    return "\n".join([plan.method, *facts(pairs), "", *aligned(rows), "", note])


def layer_outline(plan: Plan, name: str) -> dict[str, Any]:
    """The groups of one layer as plain JSON values. Raises `UnknownNameError` for a layer that the plan lacks."""
    return {"layer": name} | asdict(_layer(plan, name))


def shown_layer(plan: Plan, name: str) -> str:
    """The groups of one layer as text, the largest first. Raises as `layer_outline`."""
    layer = _layer(plan, name)
    total = sum(sum(group.weights) for group in layer.groups)
    rows = [["dominant", "importance", "members, the most important first"]]
    for group in sorted(layer.groups, key=lambda group: (-len(group.members), group.members)):
        by_weight = sorted(zip(group.members, group.weights, strict=True), key=lambda pair: (-pair[1], pair[0]))
        share = percent(sum(group.weights) / total) if total else "–"
        rows.append([str(group.dominant), share, ", ".join(str(e) for e, _ in by_weight)])
    width = max(len(row[2]) for row in rows)
    lines = aligned([[*row[:2], row[2].ljust(width)] for row in rows])
    head = f"{name}: {len(layer.expert_map)} experts, {len(layer.groups)} kept"
    dropped = [f"dropped: {', '.join(map(str, layer.dropped))}"] if layer.dropped else []
    return "\n".join([head, *lines, *dropped])


@dataclass(frozen=True)
class LayerDifference:
    """In what two plans of one layer differ.

    - `kept`: number of experts that each plan keeps.
    - `moved`: experts that share their merged expert with others than before, or are dropped by one plan only.
    - `pairs`: pairs of experts that are together in one plan and apart in the other.
    - `rand_index`: share of all pairs on which the plans agree; 1 for equal groups (Rand, 1971).
    - `dominants`: dominant experts of one plan only.
    """

    kept: tuple[int, int]
    moved: int
    pairs: int
    rand_index: float
    dominants: int

    @classmethod
    def of(cls, first: LayerPlan, second: LayerPlan) -> "LayerDifference":
        """Compare two plans of one layer, which have equally many experts."""
        count = len(first.expert_map)
        apart = _together(first) ^ _together(second)
        mates = [{e: group.members for group in layer.groups for e in group.members} for layer in (first, second)]
        dominants = [{group.dominant for group in layer.groups} for layer in (first, second)]
        return cls(
            kept=(len(first.groups), len(second.groups)),
            moved=sum(mates[0].get(e) != mates[1].get(e) for e in range(count)),
            pairs=len(apart),
            rand_index=round(1 - len(apart) / max(count * (count - 1) // 2, 1), 6),
            dominants=len(dominants[0] ^ dominants[1]),
        )


@dataclass(frozen=True)
class Difference:
    """In what two plans differ: `settings` by name, (first, second); `layers` by name, also those that are equal.

    `equal` plans have equal weights, too.
    """

    equal: bool
    settings: Mapping[str, tuple[Any, Any]]
    layers: Mapping[str, LayerDifference]

    @classmethod
    def of(cls, first: Plan, second: Plan) -> "Difference":
        """Compare two plans. Raises `PlanError` if they are not plans of one model."""
        counts = [{name: len(layer.expert_map) for name, layer in plan.layers.items()} for plan in (first, second)]
        for name in [*counts[0], *counts[1]]:
            one, other = (count.get(name, 0) for count in counts)
            if one != other:
                raise PlanError(
                    f"the plans are of different models: {name} has {one} experts in the first, {other} in the second"
                )
        before, after = _settings(first), _settings(second)
        settings = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        layers = {name: LayerDifference.of(layer, second.layers[name]) for name, layer in first.layers.items()}
        return cls(first == second, settings, layers)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.equal:
            return "the plans are equal"
        lines = [f"{name}: {first} → {second}" for name, (first, second) in self.settings.items()]
        unequal = {name: each for name, each in self.layers.items() if each.pairs or each.moved or each.dominants}
        if not unequal:
            same = "all groups are equal, with equal dominant experts"
            return "\n".join([*lines, same if lines else f"{same}; only the importance of experts differs"])
        if len(unequal) < len(self.layers):
            lines.append(f"{len(self.layers) - len(unequal)} of {len(self.layers)} layers have equal groups")
        rows = [["layer", "kept", "moved", "pairs that differ", "Rand index", "dominant in one only"]]
        for name, each in unequal.items():
            kept = " → ".join(str(count) for count in dict.fromkeys(each.kept))
            rows.append([name, kept, str(each.moved), str(each.pairs), f"{each.rand_index:.3f}", str(each.dominants)])
        return "\n".join([*lines, *aligned(rows)])


def _settings(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in SETTINGS}


def _layer(plan: Plan, name: str) -> LayerPlan:
    if name not in plan.layers:
        raise UnknownNameError("layer", name, plan.layers)
    return plan.layers[name]


def _together(layer: LayerPlan) -> set[tuple[int, int]]:
    """Pairs of experts that become one."""
    return {(a, b) for group in layer.groups for a in group.members for b in group.members if a < b}
