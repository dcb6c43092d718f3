"""How fast a model runs on this machine, and the memory that it takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcsmoe.tasks.batches import is_causal

SEED = 0


@dataclass(frozen=True)
class Workload:
    """What is timed: a batch of prompts of equal length, read only (`new` 0) or continued by `new` tokens.

    Reading is one forward pass: over the whole prompt of a causal model, over the encoder and the first position of
    the decoder of an encoder-decoder. Continuing is greedy generation with a cache, and reads the prompt first.
    """

    batch: int
    prompt: int
    new: int = 0

    @property
    def name(self) -> str:
        """Such as `prefill_batch_1`, `generate_batch_16`."""
        return f"{'generate' if self.new else 'prefill'}_batch_{self.batch}"

    @property
    def tokens(self) -> int:
        """What tokens per second count: new tokens where there are any, else those of the prompts."""
        return self.batch * (self.new or self.prompt)


@torch.inference_mode()
def run_once(model: Any, work: Workload) -> float:
    """Seconds of one run on random tokens, the same each time."""
    ids = _prompts(model, work)
    _synchronize(model)
    started = time.perf_counter()
    if work.new:
        _generate(model, ids, work.new)
    elif is_causal(model):
        model(input_ids=ids)
    else:
        start = torch.full((work.batch, 1), model.config.decoder_start_token_id, device=model.device)
        model(input_ids=ids, decoder_input_ids=start)
    _synchronize(model)
    return time.perf_counter() - started


def run_each(model: Any, works: Sequence[Workload], times: int) -> list[list[float]]:
    """Seconds of so many runs of each workload, one workload after the other."""
    return [[run_once(model, work) for _ in range(times)] for work in works]


def figures(work: Workload, seconds: Sequence[float]) -> dict[str, float]:
    """Median latency and tokens per second of runs that took `seconds`; `_low` and `_high` are quartiles."""
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


def _generate(model: Any, ids: Tensor, new: int) -> None:
    length = {"max_new_tokens": new, "min_new_tokens": new}  # an end that comes early would pass for speed
    pad = {} if model.config.pad_token_id is not None else {"pad_token_id": 0}
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, num_beams=1, **length, **pad)


def _synchronize(model: Any) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
RESET_PEAK = "5"


class PeakMemory:
    """Bytes of a model's weights and of the most that runs take beside them; make it when the model has run once.

    Weights in main memory are moved to where no file is mapped.

    On a GPU what torch allocated. Else the growth of this process's resident memory, as Linux counts it, which is
    too little where memory that was freed before is used again: ask a fresh process, about small runs first.
    """

    def __init__(self, model: Any) -> None:
        self._cuda = model.device.type == "cuda"
        weights = [*model.parameters(), *model.buffers()]  # a tied one is listed once
        if not self._cuda:
            for tensor in weights:  # mapped from a file, it would be resident or not, as the system likes
                tensor.data = tensor.data.clone()
        self._rest = _resident("VmRSS") - sum(tensor.nbytes for tensor in weights)

    def of(self, work: Callable[[], Any]) -> int:
        """Run `work` and return the peak meanwhile."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            CLEAR.write_text(RESET_PEAK)
        work()
        return torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM") - self._rest


def _resident(field: str) -> int:
    return int(STATUS.read_text().split(f"{field}:")[1].split()[0]) * 1024
