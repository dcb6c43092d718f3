"""Estimate hours and memory of the paper's table 2 on one GPU, from counted FLOPs and the presets.

    python -m benchmarks.hours

FLOPs of one example are counted on modules with the shapes of google/switch-base-32 and its dense counterpart, at the
lengths of each task. Then

    FLOPs of a training = examples × epochs × (3 × student's forward pass + teacher's forward pass)
    bytes moved         = steps × TRAFFIC × bytes of the trained weights
    hours               = FLOPs / (peak × share) + bytes moved / bandwidth

with the GPU's published bandwidth and its peak in float32, in which models are trained. The share is the part of its
peak that a training step reaches on this machine's CPU. Writes benchmarks/results/hours.json and .md.
"""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from mcsmoe.checkpoint.output import write_json
from mcsmoe.params import Params, Training
from mcsmoe.tasks.task import TASKS

ROOT = Path(__file__).parent.parent
PRESETS = ROOT / "presets"
RESULTS = Path(__file__).parent / "results"

EXAMPLES = {
    "sst2": (67_349, 872),
    "mrpc": (3_668, 408),
    "multirc": (27_243, 4_848),
    "copa": (400, 100),
    "winogrande": (40_398, 1_267),
    "squad": (87_599, 10_570),
    "wikiqa": (20_360, 6_165),
    "hotpotqa": (90_447, 7_405),
}
"""Published numbers of train and test examples; winogrande is the xl version."""

TOKENS_PER_WORD = 1.5
"""Assumed, because T5's tokenizer is not available here. English has 1.3 to 1.5; names and punctuation have more."""

TRAFFIC = 11
"""Reads and writes of each trained value per step, besides matrix products: gradient 2, clipping 2, AdamW 7."""


class GPU(NamedTuple):
    """Published memory in GB, peak FLOPs/s in float32 without TF32 (off by default in torch), bandwidth in bytes/s."""

    memory: int
    peak: float
    bandwidth: float


GPUS = {
    "RTX 4090": GPU(24, 82.6e12, 1.008e12),
    "RTX 3090": GPU(24, 35.6e12, 0.936e12),
    "H100 SXM": GPU(80, 67e12, 3.35e12),
    "A100 SXM": GPU(80, 19.5e12, 2.039e12),
}


def preset(task: str) -> Params:
    """The params of one column (task) of the table."""
    return Params.load(PRESETS / f"switch-base-32-{task}.yaml")


def table() -> Params:
    """The preset with all methods of the table."""
    return Params.load(PRESETS / "paper-table2.yaml")


def lengths(task: str, words: tuple[float, float] | None) -> tuple[int, int]:
    """Tokens of source and target, from mean `words` of the task's examples; without `words`, the preset's limits."""
    settings = preset(task).task
    most = settings.max_source_length, settings.max_target_length
    if words is None:
        return most
    source, target = (min(limit, round(TOKENS_PER_WORD * count) + 1) for limit, count in zip(most, words))
    return source, target


class Work(NamedTuple):
    """FLOPs, and bytes of weights moved beside them."""

    flops: float
    moved: float = 0.0


def training(count: int, settings: Training, student: float, teacher: float, weights: int, fixed: float = 0.0) -> Work:
    """Work of a training on `count` examples.

    student, teacher: FLOPs of a forward pass of one example; fixed: additional FLOPs of the student's forward pass per
    batch, whatever its size; weights: bytes of the trained weights.
    """
    steps = settings.epochs * count / settings.batch_size
    return Work(
        settings.epochs * count * (3 * student + teacher) + 3 * steps * fixed,
        steps * TRAFFIC * weights,
    )


def column(task: str, forward: dict[str, float], fixed: float, weights: dict[str, int]) -> dict[str, Work]:
    """Work of each stage in one column. forward: FLOPs per example by model; fixed: per batch, while S is whole."""
    params, methods = preset(task), table().methods
    count, tested = EXAMPLES[task][0] - params.task.selection, EXAMPLES[task][1]
    full, dense = forward["full"], forward["dense"]
    checks = params.finetune.evaluations * params.task.selection
    passes = TASKS[task].generates + 2 * TASKS[task].chooses
    # A task-specific student starts with all experts.
    students = [weights["full" if name == "task-specific" else "merged"] for name in methods.distill]
    finetune = training(count, params.finetune, full, 0, weights["full"])
    baseline = training(count, params.finetune, dense, 0, weights["dense"])
    distill = [training(count, params.distill, full, full, student) for student in students]
    distill += [training(count, params.distill, dense, full, weights["dense"]) for _ in methods.dense]
    compress = [training(count, params.compress, full, full, weights["compressed"], fixed) for _ in methods.compress]
    sparse = 1 + len(methods.merge) + len(methods.distill) + len(methods.compress)
    return {
        "finetune": Work(finetune.flops + checks * full, finetune.moved),
        "dense": Work(baseline.flops + checks * dense, baseline.moved),
        "distill": total(distill),
        "compress": total(compress),
        "evaluate": Work(tested * passes * (sparse * full + 2 * len(methods.dense) * dense)),
    }


def total(works: list[Work]) -> Work:
    """Sum of `works`."""
    return Work(sum(work.flops for work in works), sum(work.moved for work in works))


def hours(work: Work, gpu: GPU, share: float) -> float:
    """Hours on one GPU, even if its memory is too small."""
    return (work.flops / (gpu.peak * share) + work.moved / gpu.bandwidth) / 3600


def memory(weights: dict[str, int]) -> dict[str, float]:
    """GB that each training needs without activations, by the formula of `mcsmoe/calibration/memory.py`."""
    needs = {
        "finetune": 5 * weights["full"],
        "dense": 5 * weights["dense"],
        "distill, merged": 4 * weights["merged"] + weights["full"],
        "distill, task-specific": 4 * weights["full"] + weights["full"],
        "distill, dense": 4 * weights["dense"] + weights["full"],
        "compress": 4 * weights["compressed"] + weights["full"],
    }
    return {name: round(value / 1e9, 1) for name, value in needs.items()}


def estimate(measured: dict[str, Any]) -> dict[str, Any]:
    """Estimate work and hours by task, and memory by training, from `measured` and the presets."""
    share = float(np.median(measured["share"]))
    found: dict[str, Any] = {"share": share, "memory": memory(measured["weight_bytes"]), "columns": {}}
    sums: dict[str, list[Work]] = {}
    for task in EXAMPLES:
        row: dict[str, Any] = {}
        for kind, forward in measured["forward_flops"][task].items():
            works = column(task, forward, measured["fixed_flops"], measured["weight_bytes"])
            row[kind] = {stage: {"flops": w.flops, "moved_bytes": w.moved} for stage, w in works.items()}
            row[kind]["hours"] = {name: round(hours(total([*works.values()]), g, share), 1) for name, g in GPUS.items()}
            sums.setdefault(kind, []).extend(works.values())
        found["columns"][task] = row
    found["table"] = {k: {n: round(hours(total(w), g, share)) for n, g in GPUS.items()} for k, w in sums.items()}
    return found


def measure(data: Path) -> dict[str, Any]:
    """Measure FLOPs, words, bytes of weights and the share of peak."""
    from benchmarks.hours_measured import build, busy, configurations, forward_flops, weight_bytes, words

    share = busy(table())
    configs = configurations(table())
    one = {name: forward_flops({name: build(configs[name])}, 8, 1)[name] for name in ("merged", "compressed")}
    models = {name: build(configs[name]) for name in ("full", "dense")}
    counted = {task: words(task, data) for task in EXAMPLES}
    tokens = {t: {"likely": lengths(t, counted[t]), "at most": lengths(t, None)} for t in EXAMPLES}
    forward = {t: {k: forward_flops(models, *pair) for k, pair in kinds.items()} for t, kinds in tokens.items()}
    return {
        "share": share,
        "weight_bytes": weight_bytes(table()),
        "fixed_flops": one["compressed"] - one["merged"],
        "words": counted,
        "tokens": tokens,
        "forward_flops": forward,
    }


def main(
    data: Annotated[Path, typer.Option(help="Directory with a folder of examples for each task.")] = Path(
        "../shared/data"
    ),
) -> None:
    """Measure, estimate, and write the tables."""
    from benchmarks.hours_text import text

    measured = json.loads(json.dumps(measure(data)))
    found = estimate(measured)
    write_json(RESULTS / "hours.json", {"command": "python -m benchmarks.hours", "measured": measured} | found)
    (RESULTS / "hours.md").write_text(text(measured, found))


if __name__ == "__main__":
    typer.run(main)
