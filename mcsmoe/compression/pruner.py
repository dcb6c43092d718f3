"""Gradual pruning of the units of S (rows, columns or elements) while a factorised model trains."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mcsmoe.compression.factorise import MergedModel, sparse_parts
from mcsmoe.compression.size import kept_units
from mcsmoe.distributed import placed, whole
from mcsmoe.errors import ParameterError
from mcsmoe.params import Compress

UnitScore = Callable[[Tensor, Tensor | None], Tensor]
"""(values [n, w], gradient [n, w], or None if no token reached the layer) → scores [n], float32 or better."""


def sensitivity(values: Tensor, gradient: Tensor | None) -> Tensor:
    """Mean |s·∂L/∂s| of each unit [n]: to first order, how much the loss changes if an entry is zeroed (LoSparse)."""
    if gradient is None:
        return torch.zeros_like(values[:, 0], dtype=_precise(values))
    return (values * gradient).abs().mean(dim=1, dtype=_precise(values))


def magnitude(values: Tensor, gradient: Tensor | None) -> Tensor:
    """Mean |s| of each unit [n]."""
    return values.abs().mean(dim=1, dtype=_precise(values))


SCORES: dict[str, UnitScore] = {"sensitivity": sensitivity, "magnitude": magnitude}


def _precise(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _moving(average: Tensor, new: Tensor, beta: float) -> Tensor:
    return beta * average + (1 - beta) * new


class UnitImportance:
    """UnitImportance of the units of one weight: I ← β·I + (1 − β)·score, from I = 0 (LoSparse, arXiv 2306.11222).

    With `uncertainty` = β₂, units rank by I·U instead, where U ← β₂·U + (1 − β₂)·|score − I| with the new I, from
    U = 0. So a unit that is rarely but strongly important stays (PLATON, arXiv 2206.12562, which does this for single
    elements).
    """

    def __init__(self, values: Tensor, settings: Compress) -> None:
        self._score = SCORES[settings.importance]
        self._beta, self._uncertainty = settings.beta, settings.uncertainty
        self._average = values.new_zeros(len(values), dtype=_precise(values))
        self._deviation = torch.zeros_like(self._average) if settings.uncertainty is not None else None

    @torch.no_grad()
    def update(self, values: Tensor, gradient: Tensor | None) -> None:
        """Update the averages with one step's values [n, w] and gradient [n, w]."""
        score = whole(self._score(values, gradient)).to(self._average.device)
        self._average = _moving(self._average, score, self._beta)
        if self._deviation is not None and self._uncertainty is not None:
            self._deviation = _moving(self._deviation, (score - self._average).abs(), self._uncertainty)

    def tensors(self) -> dict[str, Tensor]:
        """The averages, `average` [n] and `deviation` [n] if it counts, from which `restore` goes on."""
        return {"average": self._average} | ({} if self._deviation is None else {"deviation": self._deviation})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from copies of what `tensors` returned."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    @property
    def ranking(self) -> Tensor:
        """Ranking [n], not negative; larger is more important."""
        return self._average if self._deviation is None else self._average * self._deviation


@dataclass(frozen=True)
class CubicSchedule:
    """Share of units kept after t optimiser steps: final + (1 − final)·(1 − (t − start)/(end − start))³.

    The share is 1 up to `start`, and `final` from `end` on. The formula is eq. 1 of Zhu & Gupta (arXiv 1710.01878), as
    used by LoSparse (arXiv 2306.11222).
    """

    start: int  # last step at which every unit is kept
    end: int  # first step at which only the final share is kept
    final: float
    interval: int = 1  # steps from one pruning to the next

    @classmethod
    def of(cls, settings: Compress, steps: int) -> Self:
        """Make the schedule for `steps` steps. Raises `ParameterError` if the two warmups together exceed 1."""
        if settings.initial_warmup + settings.final_warmup > 1:
            raise ParameterError(
                "final_warmup",
                settings.final_warmup,
                f"with `initial_warmup` = {settings.initial_warmup} their sum must not exceed 1",
            )
        start = round(settings.initial_warmup * steps)
        end = max(start, steps - round(settings.final_warmup * steps))
        return cls(start, end, settings.final_ratio, settings.interval)

    def remaining(self, step: int) -> float:
        """The share of units kept after `step`."""
        if step <= self.start:
            return 1.0
        if step >= self.end:
            return self.final
        left = 1 - (step - self.start) / (self.end - self.start)
        return self.final + (1 - self.final) * left**3

    def prunes(self, step: int) -> bool:
        """Whether to prune after `step`: every `interval` steps, and at every step from `end` on."""
        return step > self.start and (step >= self.end or step % self.interval == 0)


class Pruner:
    """Prunes the units of S of all layers by one global threshold (LoSparse, arXiv 2306.11222, but by whole units).

    In every step: backward → `before_step()` → clip gradients → optimiser step → `after_step(step)`. After the last
    step: `finish(model)`. A pruned unit stays pruned: what momentum adds to it is cleared after each step. Every unit
    counts as one, however wide. Processes with the same averaged gradients prune the same units, and a sharded model
    (`fully_shard`) is pruned like a whole one. For a model without S (structure `none`), every call does nothing.

    model: factorised, not wrapped; steps: optimiser steps of the whole training. Raises `ParameterError` if the
    schedule does not fit.
    """

    def __init__(self, model: MergedModel, settings: Compress, steps: int) -> None:
        self._parts = sparse_parts(model)
        self._schedule = CubicSchedule.of(settings, steps)
        values = {name: part.values for name, part in self._parts.items()}
        self._importance = {name: UnitImportance(v, settings) for name, v in values.items()}
        self._alive = {n: torch.ones(len(v), dtype=torch.bool, device=v.device) for n, v in values.items()}
        self._total = self._left = sum(len(v) for v in values.values())

    @property
    def remaining(self) -> float:
        """The share of all units of S that are not pruned; 0 without S."""
        return self._left / max(1, self._total)

    @torch.no_grad()
    def before_step(self) -> None:
        """Update importances from this step's values and gradients; call this after backward, before clipping.

        Gradients of pruned units are zeroed, because they must not count in the norm that is clipped.
        """
        for name, part in self._parts.items():
            self._importance[name].update(part.values, part.values.grad)
            if part.values.grad is not None:
                self._clear(part.values.grad, name)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Prune as scheduled after optimiser step `step` (the first is 1), and clear pruned units."""
        if self._schedule.prunes(step):
            self._prune(kept_units(self._total, self._schedule.remaining(step)))
        for name, part in self._parts.items():
            self._clear(part.values, name)

    def tensors(self) -> dict[str, Tensor]:
        """Which units are alive, and their importance; the same in all processes, on whatever device."""
        found = {f"{name}.alive": alive for name, alive in self._alive.items()}
        for name, importance in self._importance.items():
            found |= {f"{name}.{kind}": value for kind, value in importance.tensors().items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from copies of what `tensors` returned."""
        for name, importance in self._importance.items():
            importance.restore({kind: tensors[f"{name}.{kind}"] for kind in importance.tensors()})
            self._alive[name].copy_(tensors[f"{name}.alive"])
        self._left = sum(int(alive.sum()) for alive in self._alive.values())

    @torch.no_grad()
    def finish(self, model: MergedModel) -> None:
        """Prune to the final share if training stopped early, then remove the pruned units from the trained `model`.

        Removal does not change the function. Parameters are replaced: an existing optimiser still holds the old ones.
        """
        self._prune(kept_units(self._total, self._schedule.final))
        for name, part in sparse_parts(model).items():
            part.keep(self._alive[name])
        model.update_config()

    def _prune(self, keep: int) -> None:
        """Keep the `keep` most important units alive; ties go to the first by layer, expert and place."""
        if keep >= self._left:
            return
        scores = torch.cat([i.ranking.masked_fill(~self._alive[n], -1).cpu() for n, i in self._importance.items()])
        parts = _largest(scores, keep).split([len(alive) for alive in self._alive.values()])
        self._alive = {n: part.to(a.device) for (n, a), part in zip(self._alive.items(), parts)}
        self._left = keep

    def _clear(self, units: Tensor, name: str) -> None:
        """Zero the pruned units of `units` [n, w] in place."""
        if self._left < self._total:
            units.masked_fill_(placed(~self._alive[name][:, None], units), 0)


def _largest(scores: Tensor, keep: int) -> Tensor:
    """Mask [n] of the `keep` largest scores; ties go to the first. Selects, because elements are too many to sort."""
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - keep + 1).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero()[:, 0]
    kept[ties[: keep - int(kept.sum())]] = True
    return kept
