"""The most memory that inference holds, measured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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
