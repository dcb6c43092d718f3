"""How fast this machine is, measured in a second, and how long the phases of a run will take at that pace."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mcsmoe.families import MoELayer
from mcsmoe.shrinking.measure import NEW_TOKENS
from mcsmoe.sizing import Sizes

SAMPLE_BYTES = 2**25
USUAL_READING = 5e8
"""Bytes per second of a disk from which there is nothing to read yet."""
FASTEST = 0.3
"""Seconds that one measurement may take."""


@dataclass(frozen=True)
class Pace:
    """Bytes per second read from the disk; floating-point operations per second in the model's dtype and in float32."""

    read: float
    model: float
    single: float

    @classmethod
    def measure(cls, files: Sequence[Path], dtype: torch.dtype, device: torch.device | str) -> "Pace":
        """Measure on one of the checkpoint's `files`, if they are there, and with matrix products on `device`."""
        return cls(
            _reading(max(files, key=lambda path: path.stat().st_size)) if files else USUAL_READING,
            _products(dtype, device),
            _products(torch.float32, "cpu"),
        )


def _reading(path: Path) -> float:
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        # Pages that are cached already would promise the speed of memory.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(max(0, size // 2 - SAMPLE_BYTES // 2))
        started = time.perf_counter()
        got = len(file.read(SAMPLE_BYTES))
        return got / max(time.perf_counter() - started, 1e-6)


def _products(dtype: torch.dtype, device: torch.device | str) -> float:
    n = 512
    a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))

    def timed(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            (a @ b).sum()
        float((a @ b)[0, 0])  # waits for the device
        return time.perf_counter() - started

    timed(1)
    return _rate(timed, 2 * n**3)


def _rate(timed: Callable[[int], float], work: float) -> float:
    times, seconds = 1, timed(1)
    while seconds < FASTEST / 4:
        times *= 2
        seconds = timed(times)
    return work * times / seconds


@dataclass(frozen=True)
class Work:
    """What one run has to do: sizes of source and result in bytes, tokens to compare experts on and to measure on.

    `active` is how many parameters a token uses, `streamed` whether models are read block by block, `batches` the
    number of calibration batches.
    """

    sizes: Sizes
    kept: int
    result: int
    stock: bool
    streamed: bool
    calibration_tokens: int
    batches: int
    held_out_tokens: int
    active: int

    def seconds(self, pace: Pace) -> dict[str, float]:
        """Seconds of each phase, in order: collect, merge, export (only for a stock result), and two of measuring."""
        reading, writing = self.sizes.total / pace.read, 2 * self.result / pace.read  # written, then read again
        forward = 2 * self.active / pace.model
        statistics = sum(map(_statistics_work, self.sizes.layers)) / pace.single
        # Each batch moves all weights from memory once, which is most of the work when few tokens share an expert.
        moving = self.batches * self.sizes.total / (4 * pace.read)
        aligning = sum(self._aligning(layer) for layer in self.sizes.layers) / pace.single
        phases = {
            "collect": reading + moving + self.calibration_tokens * (forward + statistics),
            "merge": STARTING + reading + 2 * writing + aligning,
        }
        if self.stock:
            phases["export"] = STARTING + 3 * writing
        passes = NEW_TOKENS if self.streamed else 1
        for name, size in (("measure source", self.sizes.total), ("measure result", self.result)):
            phases[name] = (1 + passes) * size / pace.read + self.held_out_tokens * forward
        return phases

    def _aligning(self, layer: MoELayer) -> float:
        """Floating-point operations of aligning the experts of one layer to their dominant ones."""
        products = 2 * layer.d_ff**2 * layer.d_model * sum(role.is_weight for role in layer.layout.values())
        return (layer.experts - self.kept) * products / ALIGNING_SHARE


STARTING = 5
"""Seconds until a fresh process has imported transformers, in which a result is verified."""
ALIGNING_SHARE = 0.86
"""Share of the time of alignment that its matrix products take."""


def _statistics_work(layer: MoELayer) -> float:
    """Floating-point operations for the routing statistics of one token in one layer, nearly all in float32."""
    return 2.0 * (3 * layer.experts * layer.d_model + 2 * layer.experts**2)


def active_parameters(sizes: Sizes, itemsize: int) -> int:
    """Parameters that a token uses: all but those of the experts that it does not select."""
    idle = sum((layer.experts - layer.top_k) * sizes.by_layer[layer.name].expert for layer in sizes.layers)
    return (sizes.total - idle) // itemsize


def shown_time(seconds: float) -> str:
    """A time for people: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
