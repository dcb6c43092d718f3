"""How much each expert is used, before merging and after it, as rows that `dvc plots` and the report show."""

from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.grouping.plan import Plan

DIGITS = 6
BEFORE, AFTER = "before", "after"


def use_rows(plan: Plan, frequency: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """A row an expert of each layer before merging, by `frequency` [E], and a row a merged expert after it.

    A merged expert takes the tokens of all its members, so its share is the sum of theirs. `group` is its place
    in the layer, null for an expert that is dropped; `dominant` tells whom the members are aligned to.
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
