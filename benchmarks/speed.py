"""Measure how fast merged and compressed models are beside the stock full model, on a CPU.

    python -m benchmarks.speed             google/switch-base-32, 32 experts a layer merged to 8 (8 GB of disk), and a
                                           small Mixtral, 8 experts a layer merged to 4
    python -m benchmarks.speed --quick     the same with fewer layers, smaller widths, batches of 1 and 64

Weights and tokens are random; random routers spread tokens less evenly than trained ones. The stock model runs its
experts as a loop and, where transformers has them, as grouped products; ratios are to the faster of the two, in runs of
the same round, in seconds of CPU. A compressed model promises the ratio of the floating-point operations that both
really run on this work, attention and embeddings' heads included. Stock causal models multiply the last position of
each prompt by a copy of the head's weight for each sequence, which ours avoid: in bfloat16 that is most of what a large
batch gains, and no merit of compression. Without --quick, size and peak memory are measured too, with a process for
each model; peaks include the weights, see `mcsmoe/evaluation/speed.py`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.side_by_side import Claim, Times, in_turns, ratio, save, table
from benchmarks.speed_models import SHAPES, SMALL, make
from mcsmoe.checkpoint.load import load_model
from mcsmoe.evaluation.cost import flops_of
from mcsmoe.evaluation.speed import Workload, run_once

GROUPS = {"switch": 8, "mixtral": 4}
STOCK = ("eager", "grouped_mm")
DTYPES = (torch.float32, torch.bfloat16)
WORKS = [Workload(1, 128), Workload(8, 64), Workload(64, 32)]
WORKS += [Workload(batch, 16, 16) for batch in (1, 8, 64)]
FEWER = [Workload(1, 64), Workload(64, 4)]
FEWER += [Workload(batch, 4, 3) for batch in (1, 64)]
HEAD = ["what", "faster stock", "its ms", "merged", "compressed", "promised", "kept of it"]
PEAKS = {"peak MB, generate, batch 1": Workload(1, 128, 32), "peak MB, prefill, batch 8": Workload(8, 128)}


def models(directory: Path, shape: str, dtype: torch.dtype) -> dict[str, Any]:
    """Stock model by implementation of its experts, merged, compressed; Switch has a loop only."""
    stock = STOCK[: 1 if shape == "switch" else 2]
    places = dict.fromkeys(stock, "full") | {"merged": "merged", "compressed": "compressed"}
    found = {name: load_model(directory / place).to(dtype).requires_grad_(False) for name, place in places.items()}
    for name in stock[1:]:
        found[name].set_experts_implementation(name)
    return found


def rows(directory: Path, shape: str, rounds: int, works: list[Workload]) -> Iterator[dict[str, Any]]:
    """Measure one shape."""
    for dtype in DTYPES:
        found = models(directory, shape, dtype)
        for work in works:
            times = in_turns({name: partial(run_once, model, work) for name, model in found.items()}, rounds)
            flops = {name: flops_of(partial(run_once, found[name], work)) for name in ("eager", "compressed")}
            what = f"{shape} {str(dtype).removeprefix('torch.')} {work.name}"
            yield compare(what, times, flops["eager"] / flops["compressed"])


def compare(what: str, times: dict[str, Times], promised: float) -> dict[str, Any]:
    """Ratios of times to those of the faster stock implementation, and how much of the promise is kept."""
    stock = min((name for name in STOCK if name in times), key=lambda name: float(np.median(times[name].cpu)))
    merged = ratio(times["merged"], times[stock], cpu=True)
    faster = ratio(times[stock], times["compressed"], cpu=True)
    values = [what, stock, 1e3 * times[stock].median, merged, faster, promised, faster.median / promised]
    print(*values, flush=True)
    return dict(zip(HEAD, values)) | {"times": times}


def costs(directory: Path, threads: int) -> dict[str, Any]:
    """Size and peak bytes of each model, small runs first, one process at a time."""
    found = {}
    for name in ("full", "merged", "compressed"):
        command = [sys.executable, "-m", "benchmarks.speed_worker", str(directory / name), str(threads)]
        questions = "".join(
            json.dumps({"batch": w.batch, "prompt": w.prompt, "new": w.new}) + "\n" for w in PEAKS.values()
        )
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, input=questions, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        size, *peaks = map(json.loads, done.stdout.splitlines())
        found[name] = size | {what: round(peak / 1e6) for what, peak in zip(PEAKS, peaks)}
    return found


def main(
    quick: Annotated[bool, typer.Option(help="Small models, fewer rounds and tokens.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = 3,
) -> None:
    """Make the models, measure them, and write the table."""
    torch.set_num_threads(threads)
    measured: list[dict[str, Any]] = []
    figures, text = {}, ""
    for shape, groups in GROUPS.items():
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
            make((SMALL if quick else SHAPES)[shape], groups, Path(scratch))
            if not quick:
                figures[shape] = costs(Path(scratch), threads)
                kinds = list(figures[shape]["full"])
                sizes = [[name, *(f"{cost[kind]:,}" for kind in kinds)] for name, cost in figures[shape].items()]
                text += f"{shape}:\n\n{table(['model', *kinds], sizes)}\n"
            measured += rows(Path(scratch), shape, rounds, FEWER if quick else WORKS)
    text += table(HEAD, ([row[name] for name in HEAD] for row in measured))
    claims = [
        Claim("merged / faster stock, lower quartile, worst case", max(row["merged"].low for row in measured), 1.0),
        Claim(
            "compressed: achieved / promised speed-up, worst case",
            min(row["kept of it"] for row in measured),
            0.75,
            most=False,
        ),
    ]
    command = f"python -m benchmarks.speed --threads {threads} --rounds {rounds}"
    save(
        "speed",
        "Speed of full, merged and compressed models",
        command,
        text,
        figures | {"rows": measured},
        claims,
        quick,
    )


if __name__ == "__main__":
    typer.run(main)
