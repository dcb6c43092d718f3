"""Measure how fast one checkpoint runs and how much memory it takes; results depend on the machine and the run.

python -m stages.speed --checkpoint DIR --output FILE      any model that transformers loads; no params.yaml is read
make speed                                                 full, merged and compressed models, into metrics/speed
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from mcsmoe.command import prepare
from mcsmoe.errors import UserError
from mcsmoe.fields import find_directory
from stages.common import check_outputs, run

SEED = 0
WARMUP = 2


def main(
    checkpoint: Annotated[str, Option(help="Directory of the checkpoint, or a hub id.")],
    output: Annotated[Path | None, Option(help="JSON file for the figures; without it they are printed.")] = None,
    batches: Annotated[str, Option(help="Prompts at a time, by commas.")] = "1,16",
    prompt: Annotated[int, Option(min=1, help="Tokens of a prompt.")] = 128,
    new: Annotated[int, Option(min=1, help="Tokens generated behind each prompt.")] = 32,
    repeats: Annotated[int, Option(min=1, help="Timed runs of each kind, after two that do not count.")] = 11,
    threads: Annotated[int | None, Option(min=1, help="Threads of torch; all cores by default.")] = None,
) -> None:
    """Write latency, tokens per second and peak memory of prefill and generation to OUTPUT."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", batches):
        raise UserError(f"--batches {batches!r}: numbers from 1 up, by commas, such as 1,16")
    prepare(SEED, threads)
    check_outputs(filter(None, [output]))
    import torch

    from mcsmoe.checkpoint.load import load_model
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.evaluation.speed import PeakMemory, Workload, figures, run_each, run_once

    torch.use_deterministic_algorithms(False)  # they are slower, and inference in practice does not use them
    device = "cuda" if torch.cuda.is_available() else "cpu"
    directory = find_directory(checkpoint)
    model = load_model(directory if directory.is_dir() else checkpoint, any_family=True).to(device)
    found: dict[str, float | str] = {"device": device, "threads": torch.get_num_threads(), "repeats": repeats}
    found |= {"prompt_tokens": prompt, "new_tokens": new}
    run_once(model, Workload(1, 1, 1))  # the first run imports code, which must not count as memory of inference
    memory = PeakMemory(model)
    for batch in sorted(map(int, batches.split(","))):
        works = Workload(batch, prompt), Workload(batch, prompt, new)
        found[f"batch_{batch}_peak_memory_bytes"] = memory.of(partial(run_each, model, works, WARMUP))
        for work, seconds in zip(works, run_each(model, works, repeats), strict=True):
            found |= figures(work, seconds)
    if output is None:
        print(json.dumps(found, indent=2))
    else:
        write_json(output, found)
        print(f"{checkpoint}: measured on {device}")


if __name__ == "__main__":
    run(main)
