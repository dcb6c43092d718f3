"""Memory and time of permuting and merging a checkpoint of real width, by the number of its layers.

    python -m benchmarks.surgery --layers 2,4

Makes random checkpoints of switch-base-32's width (d 768, f 3072, 32 experts, float32; 604 MB of experts a
sparse layer), aligns every expert to one of its layer, and merges 32 → 8. Each step runs in a process of its
own, whose peak memory above that of the imports is what counts. Writes benchmarks/results/surgery.json and .md.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mcsmoe.checkpoint.atomic import write_json

RESULTS = Path(__file__).parent / "results"
STEPS = ("read and write once", "permute", "merge, aligned", "merge, not aligned")
KEPT = 8


def main(layers: Annotated[str, typer.Option(help="Sparse layers of each checkpoint, by commas.")] = "2,4") -> None:
    """Measure each step on each checkpoint and write the table."""
    rows = []
    for count in map(int, layers.split(",")):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
            subprocess.run([sys.executable, "-m", "benchmarks.surgery_step", scratch, "make", str(count)], check=True)
            size = (Path(scratch) / "make/model.safetensors").stat().st_size
            for step in STEPS:
                command = [sys.executable, "-m", "benchmarks.surgery_step", scratch, step, str(KEPT)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows.append(
                    {"layers": count, "step": step, "checkpoint_mb": round(size / 1e6)} | json.loads(done.stdout)
                )
                print(rows[-1], flush=True)
    command_line = f"python -m benchmarks.surgery --layers {layers}"
    write_json(RESULTS / "surgery.json", {"command": command_line, "cores": os.cpu_count(), "rows": rows})
    head = "| sparse layers | checkpoint MB | step | peak above imports, MB | seconds |\n|---:|---:|---|---:|---:|\n"
    body = "".join(
        f"| {r['layers']} | {r['checkpoint_mb']:,} | {r['step']} | {r['peak_mb']:,} | {r['seconds']} |\n" for r in rows
    )
    (RESULTS / "surgery.md").write_text(f"# Permuting and merging\n\n`{command_line}`\n\n{head}{body}")


if __name__ == "__main__":
    typer.run(main)
