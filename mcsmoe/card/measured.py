"""What evaluate measured of a checkpoint and of the full model, where it did."""

import json
from dataclasses import dataclass
from pathlib import Path

from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.evaluation.table import COSTS, Metric

METRICS = Path("metrics/evaluate")


@dataclass(frozen=True)
class Figure:
    """One figure of the full model and of the merged one."""

    name: str
    full: float
    merged: float
    worse: bool


def measured(checkpoint: Checkpoint, metric: Metric) -> list[Figure]:
    """The figures of a checkpoint in artifacts/STEP/METHOD beside the full model's; none where there are none.

    Figures that belong to another state of the checkpoint, which its bytes tell, do not count.
    """
    step, method = checkpoint.directory.resolve().parts[-2:]
    files = [METRICS / "full.json", METRICS / f"{step}-{method}.json"]
    if not all(file.is_file() for file in files):
        return []
    full, merged = (json.loads(file.read_text()) for file in files)
    if merged["bytes"] != checkpoint.size_bytes:
        return []
    return [Figure(name, full[name], merged[name], _worse(name, full, merged, metric)) for name in full]


def _worse(name: str, full: dict[str, float], merged: dict[str, float], metric: Metric) -> bool:
    if name in COSTS:
        return merged[name] > full[name]
    # Figures beside the metric have no direction of their own, but for its breakdown.
    return name.startswith(metric.name) and metric.gain(merged[name], full[name]) < 0
