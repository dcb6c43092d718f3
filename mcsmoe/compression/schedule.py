"""How many units of S are kept at which step: all, then fewer along a cubic curve, then the final share."""

from dataclasses import dataclass
from typing import Self

from mcsmoe.errors import ParameterError
from mcsmoe.params import Compress


@dataclass(frozen=True)
class CubicSchedule:
    """final + (1 − final)·(1 − (t − start)/(end − start))³ between `start` and `end`.

    Zhu & Gupta, arXiv 1710.01878, eq. 1, as used by LoSparse, arXiv 2306.11222. `t` counts optimiser steps.
    """

    start: int  # last step at which every unit is kept
    end: int  # first step at which only the final share is kept
    final: float
    interval: int = 1  # steps between two prunings

    @classmethod
    def of(cls, settings: Compress, steps: int) -> Self:
        """Schedule for `steps` steps in all. Raises `ParameterError` if the two holds do not fit."""
        if settings.initial_warmup + settings.final_warmup > 1:
            raise ParameterError(
                "compress.final_warmup",
                settings.final_warmup,
                f"with compress.initial_warmup = {settings.initial_warmup} their sum must not exceed 1",
            )
        start = round(settings.initial_warmup * steps)
        end = max(start, steps - round(settings.final_warmup * steps))
        return cls(start, end, settings.final_ratio, settings.interval)

    def remaining(self, step: int) -> float:
        """Share of units kept after `step`."""
        if step <= self.start:
            return 1.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.start) / (self.end - self.start)
        return self.final + (1 - self.final) * left**3

    def prunes(self, step: int) -> bool:
        """True after which steps units are pruned: every `interval`, and once the final share holds."""
        return step > self.start and (step >= self.end or step % self.interval == 0)
