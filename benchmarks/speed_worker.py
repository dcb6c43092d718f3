"""Size, FLOPs and peak memory of one model of benchmarks/speed.py, in a process of its own, each a line of JSON."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from mcsmoe.checkpoint.load import load_model
from mcsmoe.evaluation.cost import flops_per_token, size
from mcsmoe.evaluation.speed import PeakMemory, Workload, run_once
from mcsmoe.tasks.task import Encoded

ROW = Encoded([*range(2, 130)], [*range(2, 34)])
"""128 source and 32 target tokens; FLOPs do not depend on their ids."""


def main(directory: Path, threads: int) -> None:
    """Print size and FLOPs, then the peak bytes of each workload that standard input gives."""
    torch.set_num_threads(threads)
    model = load_model(directory)
    run_once(model, Workload(1, 1, 1))
    memory = PeakMemory(model)
    peaks = [memory.of(partial(run_once, model, Workload(**json.loads(line)))) for line in sys.stdin]
    print(json.dumps(size(model, directory) | {"flops_per_token": round(flops_per_token(model, [ROW], 0))}))
    print(*peaks, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
