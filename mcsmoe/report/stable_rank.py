"""Section: how many dimensions the experts use before merging, after it, and after distillation."""

from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.evaluation.stable_rank import stable_rank_figure
from mcsmoe.report.figure import inline
from mcsmoe.report.section import Section, section


def stable_rank_section(ranks: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section:
    """`ranks` holds, by method, rows of a moment, a layer and its stable rank."""
    pictures = []
    for i, (method, rows) in enumerate(ranks.items()):
        moments: dict[str, dict[str, float]] = {}
        for row in rows:
            moments.setdefault(row["moment"], {})[row["layer"]] = row["stable_rank"]
        pictures.append(inline(stable_rank_figure(method, moments), f"rank-{i}", f"stable rank of experts, {method}"))
    return section("Stable rank", "stable_rank.html", pictures=pictures)
