"""Measure how much faster than the full model a merged and a compressed model are, on a CPU.

    python -m benchmarks.speed --shape switch      google/switch-base-32, 32 experts a layer merged to 8 (8 GB of disk)
    python -m benchmarks.speed --shape mixtral     a small Mixtral, 8 experts a layer merged to 4

Weights and tokens are random; random routers spread tokens less evenly than trained ones. Each model has a process of
its own. The models take turns, one run each, so that other work on the machine affects all of them alike. Ratios are
between runs of the same round, with median and quartiles over rounds. If other work shares the cores, CPU seconds are
more reliable than wall time. Peak memory includes the weights, see `mcsmoe/evaluation/speed.py`.

Writes benchmarks/results/speed.json and .md, and keeps the other shape's results there.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from mcsmoe.checkpoint.output import write_json
from mcsmoe.evaluation.speed import Workload

RESULTS = Path(__file__).parent / "results"
MODELS = ("full", "merged", "compressed")
GROUPS = {"switch": 8, "mixtral": 4}
WORKS = [Workload(1, 128), Workload(1, 512), Workload(8, 128), Workload(1, 128, 32), Workload(8, 128, 32)]
PEAKS = {"peak_generate_batch_1": Workload(1, 128, 32), "peak_prefill_batch_8": Workload(8, 128)}


class Worker:
    """One model in a process of its own."""

    def __init__(self, directory: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.speed_worker", str(directory), str(threads)]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, kind: str, work: Workload | None = None) -> Any:
        """Send a request and return the worker's answer; see `answer` in benchmarks/speed_worker.py."""
        assert self._process.stdin
        assert self._process.stdout
        question = {"kind": kind} | ({"work": asdict(work)} if work else {})
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def costs(directory: Path, threads: int) -> dict[str, Any]:
    """Measure size, FLOPs and peak bytes of each model, small runs first, one process at a time."""
    found = {}
    for name in MODELS:
        worker = Worker(directory / name, threads)
        peaks = {peak: worker.ask("memory", work) for peak, work in PEAKS.items()}
        found[name] = worker.ask("size") | peaks
        worker.stop()
    return found


def times(directory: Path, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Measure wall and CPU seconds of each workload, by model and round."""
    workers = {name: Worker(directory / name, threads) for name in MODELS}
    rows = []
    for work in WORKS:
        runs: dict[str, list[list[float]]] = {name: [] for name in MODELS}
        for _ in range(repeats + 1):
            for name, worker in workers.items():
                runs[name].append([round(each, 4) for each in worker.ask("time", work)])
        # The first round warms up.
        taken = {name: dict(zip(("clock", "cpu"), zip(*found[1:]))) for name, found in runs.items()}
        rows.append(asdict(work) | {"seconds": taken})
        print(line(rows[-1]), end="", flush=True)
    for worker in workers.values():
        worker.stop()
    return rows


def quartiles(values: Any, digits: int = 2) -> str:
    """Format the median and, in brackets, the quartiles."""
    low, middle, high = (f"{np.quantile(values, level):.{digits}f}" for level in (0.25, 0.5, 0.75))
    return f"{middle} ({low}–{high})"


def line(row: dict[str, Any]) -> str:
    """Format one row of the table of times."""
    clock, cpu = ({name: np.array(taken[kind]) for name, taken in row["seconds"].items()} for kind in ("clock", "cpu"))
    per_second = row["batch"] * (row["new"] or row["prompt"]) / clock["full"]
    kind = f"generate {row['new']}" if row["new"] else "prefill"
    ratios = [quartiles(seconds["full"] / seconds[name]) for name in MODELS[1:] for seconds in (clock, cpu)]
    cells = [kind, row["batch"], row["prompt"], quartiles(clock["full"]), quartiles(per_second, 0), *ratios]
    return f"| {' | '.join(map(str, cells))} |\n"


def text(shape: str, found: dict[str, Any]) -> str:
    """Return the section of one shape."""
    lines = [f"\n## {shape}\n\n`{found['command']}` ({found['cores']} cores, {found['threads']} threads, float32)\n"]
    lines += ["| model | parameters | bytes | FLOPs/token | peak MB, generate, batch 1 | peak MB, prefill, batch 8 |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for name, cost in found["costs"].items():
        numbers = " | ".join(f"{cost[key]:,}" for key in ("parameters", "bytes", "flops_per_token"))
        peaks = " | ".join(f"{cost[key] / 1e6:,.0f}" for key in PEAKS)
        lines.append(f"| {name} | {numbers} | {peaks} |")
    lines += ["\nMedian and quartiles; how many times as fast as the full model, in runs of the same round:\n"]
    head = ["what", "batch", "prompt", "full, seconds", "full, tokens/s"]
    head += [f"{name}, by {seconds}" for name in MODELS[1:] for seconds in ("the clock", "CPU seconds")]
    lines += [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines) + "\n" + "".join(map(line, found["rows"]))


def main(
    shape: Annotated[str, typer.Option(help="switch or mixtral.")] = "switch",
    repeats: Annotated[int, typer.Option(help="Rounds that count; 0: costs alone, the times stay.")] = 7,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    models: Annotated[Path | None, typer.Option(help="Directory to keep the models in, or with them.")] = None,
) -> None:
    """Make the models that do not exist yet, measure them, and write the tables."""
    measured: dict[str, Any]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as scratch:
        directory = models or Path(scratch) / shape
        if not (directory / "compressed" / "config.json").is_file():
            command = [sys.executable, "-m", "benchmarks.speed_models", shape, str(GROUPS[shape]), str(directory)]
            subprocess.run(command, check=True)
        measured = {"costs": costs(directory, threads)}
        if repeats:
            command_line = f"python -m benchmarks.speed --shape {shape} --repeats {repeats} --threads {threads}"
            measured |= {"command": command_line, "cores": os.cpu_count(), "threads": threads}
            measured |= {"rows": times(directory, repeats, threads)}
    path = RESULTS / "speed.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[shape] = results.get(shape, {}) | measured
    write_json(path, results)
    body = "".join(text(name, results[name]) for name in GROUPS if name in results)
    (RESULTS / "speed.md").write_text("# Speed of full, merged and compressed models\n" + body)


if __name__ == "__main__":
    typer.run(main)
