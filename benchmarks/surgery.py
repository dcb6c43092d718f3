"""Measure memory and time of merging a checkpoint of Mixtral's shape, by its number of layers.

    python -m benchmarks.surgery

Makes random experts, routers and embeddings of Mixtral-8x7B's shape (d = 4096, f = 14336, 8 experts, bfloat16; 2.8 GB
of experts per layer) with a shard for each layer, and merges 8 → 4 experts in each layer. Each step has a process of
its own and really uses the disk: the input is dropped from the page cache first, and the output is synced. For
comparison, "read and write once" only reads all files and writes as many bytes as the merged checkpoint has. Needs
20 GB in $TMPDIR; writes benchmarks/results/surgery.json and .md.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from mcsmoe.checkpoint.output import write_json

RESULTS = Path(__file__).parent / "results"
ONCE, UNALIGNED, ALIGNED = "read and write once", "merge, not aligned", "merge, aligned"
HEAD = """| step | layers | GB in | GB out | seconds | × once | of it costs, s | peak MB | above imports |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
"""


def run(scratch: str, step: str, layers: int, threads: int) -> Any:
    """Run one step in a process of its own and return the JSON that it printed."""
    arguments = [sys.executable, "-m", "benchmarks.surgery_step", scratch, step, str(layers), str(threads)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(row: dict[str, Any]) -> str:
    """Format one row of the table."""
    costs = row.get("cost_seconds", "")
    sizes = f"{row['gb_in']:.2f} | {row['gb_out']:.2f}"
    peaks = f"{row['peak_mb']:,} | {row['above_imports_mb']:,}"
    return f"| {row['step']} | {row['layers']} | {sizes} | {row['seconds']} | {row['ratio']} | {costs} | {peaks} |\n"


def main(
    layers: Annotated[str, typer.Option(help="Layers of each checkpoint merged without alignment, by commas.")] = "2,4",
    aligned_layers: Annotated[int, typer.Option(help="Layers of the checkpoint merged with alignment; 0: none.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measure each step on each checkpoint and write the table."""
    counts = sorted(map(int, layers.split(",")))
    steps = [(step, count) for count in counts for step in (ONCE, UNALIGNED)]
    if aligned_layers:
        steps += [(ONCE, aligned_layers), (ALIGNED, aligned_layers)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
        run(scratch, "make", max(*counts, aligned_layers), threads)
        for step, count in steps:
            row = {"step": step, "layers": count} | run(scratch, step, count, threads)
            shutil.rmtree(Path(scratch) / "out")
            once = row if step == ONCE else next(r for r in rows if r["step"] == ONCE and r["layers"] == count)
            rows.append(row | {"ratio": round(row["seconds"] / once["seconds"], 2)})
            print(line(rows[-1]), end="", flush=True)
    command = f"python -m benchmarks.surgery --layers {layers} --aligned-layers {aligned_layers} --threads {threads}"
    write_json(RESULTS / "surgery.json", {"command": command, "cores": os.cpu_count(), "rows": rows})
    table = HEAD + "".join(map(line, rows))
    text = f"# Merging a checkpoint of Mixtral's shape, 8 → 4\n\n`{command}` ({os.cpu_count()} cores)\n\n{table}"
    (RESULTS / "surgery.md").write_text(text)


if __name__ == "__main__":
    typer.run(main)
