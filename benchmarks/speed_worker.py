"""One model of benchmarks/speed.py in a process of its own, which answers each line of JSON with one line of JSON."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.evaluation.cost import flops_per_token, size
from mcsmoe.evaluation.speed import PeakMemory, Workload, run_once
from mcsmoe.tasks.task import Encoded

ROW = Encoded([*range(2, 130)], [*range(2, 34)])
"""128 source and 32 target tokens; FLOPs do not depend on their ids."""


def answer(question: dict[str, Any], model: Any, memory: PeakMemory, directory: Path) -> Any:
    """Answer by `kind`: "size" → size and FLOPs; "memory" → peak bytes; "time" → wall and CPU seconds of one run."""
    kind, work = question["kind"], Workload(**question.get("work", {"batch": 1, "prompt": 1}))
    if kind == "size":
        return size(model, directory) | {"flops_per_token": round(flops_per_token(model, [ROW], 0))}
    if kind == "memory":
        return memory.of(lambda: run_once(model, work))
    before = time.process_time()
    return run_once(model, work), time.process_time() - before


def main(directory: Path, threads: int) -> None:
    """Answer questions until standard input closes."""
    torch.set_num_threads(threads)
    model = load_model(directory)
    run_once(model, Workload(1, 1, 1))
    memory = PeakMemory(model)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), model, memory, directory)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
