"""Measure memory and time of collect by number of layers, with a model whole in memory and streamed block by block.

    python -m benchmarks.streaming --layers 2,6,12

Makes random Mixtrals with d = 512, f = 1792 and 8 experts (float32, 92 MB per layer), and collects statistics on 8
batches of 4 rows of 128 tokens. Each run has a process of its own; its peak memory is counted without that of the
imports. Writes benchmarks/results/streaming.json and .md.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from mcsmoe.calibration.collect import collect_layers
from mcsmoe.calibration.statistics import StatisticsWriter
from mcsmoe.checkpoint.load import load_model
from mcsmoe.checkpoint.output import write_json
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.families import family_of

RESULTS = Path(__file__).parent / "results"
LOADERS: dict[str, Callable[[Path], Any]] = {"in memory": load_model, "streamed": load_streamed}
NOTE = "Seconds are those of a machine that may have done other work beside."
SIZES = {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 8}


def make(directory: Path, layers: int) -> None:
    """Write a random checkpoint."""
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=8, num_hidden_layers=layers)
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(directory)


def measure(directory: Path, way: str) -> None:
    """Collect in this process; print seconds and peak memory as JSON."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(SIZES["vocab_size"], (8, 4, 128), generator=generator)
    family = family_of(Checkpoint(directory).config)
    layers = family.layers(Checkpoint(directory).config)
    before, started = peak_mb(), time.monotonic()
    with StatisticsWriter(directory) as writer:
        collect_layers(LOADERS[way](directory), family, layers, [{"input_ids": each} for each in ids], writer.keep)
        writer.finish({}, {})
    print(json.dumps({"seconds": round(time.monotonic() - started, 1), "peak_mb": peak_mb() - before}))


def peak_mb() -> int:
    """Peak resident memory of this process so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def main(layers: Annotated[str, typer.Option(help="Layers of each model, by commas.")] = "2,6,12") -> None:
    """Measure both ways on each model and write the table."""
    rows = []
    for count in map(int, layers.split(",")):
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
            _step("make", scratch, count)
            size = round(Checkpoint(Path(scratch)).size_bytes / 1e6)
            for way in LOADERS:
                found = json.loads(_step("measure", scratch, way))
                rows.append({"layers": count, "checkpoint_mb": size, "model": way} | found)
                print(rows[-1], flush=True)
    command = f"python -m benchmarks.streaming --layers {layers}"
    write_json(RESULTS / "streaming.json", {"command": command, "cores": os.cpu_count(), "rows": rows})
    head = "| layers | checkpoint MB | model | peak above imports, MB | seconds |\n|---:|---:|---|---:|---:|\n"
    body = "".join(
        f"| {r['layers']} | {r['checkpoint_mb']:,} | {r['model']} | {r['peak_mb']:,} | {r['seconds']} |\n" for r in rows
    )
    (RESULTS / "streaming.md").write_text(f"# Collecting block by block\n\n`{command}`\n\n{head}{body}\n{NOTE}\n")


def _step(step: str, directory: str, argument: int | str) -> str:
    code = f"import benchmarks.streaming as b; b.{step}(b.Path({directory!r}), {argument!r})"
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    typer.run(main)
