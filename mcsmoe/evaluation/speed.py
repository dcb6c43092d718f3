"""Speed and peak memory of a model on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcsmoe.evaluation.generation import greedy
from mcsmoe.tasks.batches import is_causal

SEED = 0


@dataclass(frozen=True)
class Workload:
    """A batch of prompts of equal length to time: prefill (`new` = 0), or generation of `new` tokens.

    Prefill is one forward pass: of the whole prompt for a causal model, of the encoder and the first decoder position
    for an encoder-decoder. Generation is greedy, with a cache, and includes the prefill.
    """

    batch: int
    prompt: int
    new: int = 0

    @property
    def name(self) -> str:
        """Name such as `prefill_batch_1` or `generate_batch_16`."""
        return f"{'generate' if self.new else 'prefill'}_batch_{self.batch}"

    @property
    def tokens(self) -> int:
        """Tokens counted for tokens per second: new tokens if any, else those of the prompts."""
        return self.batch * (self.new or self.prompt)


@torch.inference_mode()
def run_once(model: Any, work: Workload) -> float:
    """Run once on random tokens, the same each time, and return the seconds."""
    ids = _prompts(model, work)
    _synchronize(model)
    started = time.perf_counter()
    if work.new:
        greedy(model, ids, torch.ones_like(ids), work.new)  # without end tokens: an early end would look like speed
    elif is_causal(model):
        model(input_ids=ids)
    else:
        start = torch.full((work.batch, 1), model.config.decoder_start_token_id, device=model.device)
        model(input_ids=ids, decoder_input_ids=start)
    _synchronize(model)
    return time.perf_counter() - started


def run_each(model: Any, works: Sequence[Workload], times: int) -> list[list[float]]:
    """Run each workload `times` times, one workload after the other, and return the seconds [works][times]."""
    return [[run_once(model, work) for _ in range(times)] for work in works]


def figures(work: Workload, seconds: Sequence[float]) -> dict[str, float]:
    """Return medians of seconds and tokens per second over the runs; `_low` and `_high` are quartiles.

    Keys are such as `prefill_batch_1_seconds`, `prefill_batch_1_tokens_per_second_low`.
    """
    found = {"seconds": np.array(seconds), "tokens_per_second": work.tokens / np.array(seconds)}
    names = {"_low": 0.25, "": 0.5, "_high": 0.75}
    return {
        f"{work.name}_{kind}{suffix}": float(f"{np.quantile(values, level):.4g}")
        for kind, values in found.items()
        for suffix, level in names.items()
    }


def _prompts(model: Any, work: Workload) -> Tensor:
    """Random ids [batch, prompt]."""
    vocabulary = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(vocabulary, (work.batch, work.prompt), generator=generator).to(model.device)


def _synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"


class PeakMemory:
    """Peak memory of a model's runs, its weights included, in bytes. Create it after the model has run once.

    On a GPU, this is the memory that torch allocated. On a CPU, it is the weights plus the growth of this process's
    resident memory, as Linux counts it. Reused memory that was freed earlier is missing from that growth, so measure
    in a fresh process, small runs first. Weights on a CPU are copied out of mapped files.
    """

    def __init__(self, model: Any) -> None:
        self._cuda = model.device.type == "cuda"
        weights = [*model.parameters(), *model.buffers()]  # a tied one is listed once
        if not self._cuda:
            for tensor in weights:  # the system may evict the pages of a mapped file
                tensor.data = tensor.data.clone()
        self._rest = resident("VmRSS") - sum(tensor.nbytes for tensor in weights)

    def of(self, work: Callable[[], Any]) -> int:
        """Run `work` and return the peak during it, in bytes."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            CLEAR.write_text(RESET_PEAK)
        work()
        return torch.cuda.max_memory_allocated() if self._cuda else resident("VmHWM") - self._rest


def resident(field: str) -> int:
    """Bytes of memory of this process, with pages of mapped files: "VmRSS" now, "VmHWM" at its peak so far."""
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) * 1024
