"""Gradual pruning of the units of S (rows, columns or elements) while a factorised model trains."""

import torch
from torch import Tensor

from mcsmoe.compression.importance import Importance
from mcsmoe.compression.merged_model import MergedModel, sparse_parts
from mcsmoe.compression.schedule import CubicSchedule
from mcsmoe.compression.shards import placed
from mcsmoe.compression.size import kept_units
from mcsmoe.params import Compress


class Pruner:
    """One global threshold over the units of S of all layers (LoSparse, arXiv 2306.11222, by whole units).

    In every step: backward → `before_step()` → clip gradients → optimiser step → `after_step(step)`; after
    the last one `finish(model)`. A pruned unit stays pruned: whatever momentum does to it is undone after each
    step. Processes that share averaged gradients prune the same units. Units count one each, however wide.
    A model without S (structure `none`) has nothing to prune: every call then does nothing. A model in shards
    (`fully_shard`) is pruned as the whole one is.

    model: factorised, not wrapped; steps: optimiser steps of the whole training. Raises `ParameterError` if
    the schedule does not fit.
    """

    def __init__(self, model: MergedModel, settings: Compress, steps: int) -> None:
        self._parts = sparse_parts(model)
        self._schedule = CubicSchedule.of(settings, steps)
        values = {name: part.values for name, part in self._parts.items()}
        self._importance = {name: Importance(v, settings) for name, v in values.items()}
        self._alive = {n: torch.ones(len(v), dtype=torch.bool, device=v.device) for n, v in values.items()}
        self._total = self._left = sum(len(v) for v in values.values())

    @property
    def remaining(self) -> float:
        """Share of all units of S that are not pruned; 0 without S."""
        return self._left / max(1, self._total)

    @torch.no_grad()
    def before_step(self) -> None:
        """Update the importance from this step's values and gradients; call it after backward, before clipping.

        Gradients of pruned units are zeroed: they must not count in the norm that clipping looks at.
        """
        for name, part in self._parts.items():
            self._importance[name].update(part.values, part.values.grad)
            if part.values.grad is not None:
                self._clear(part.values.grad, name)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Prune as the schedule says after optimiser step `step` (1 is the first), and clear pruned units."""
        if self._schedule.prunes(step):
            self._prune(kept_units(self._total, self._schedule.remaining(step)))
        for name, part in self._parts.items():
            self._clear(part.values, name)

    @torch.no_grad()
    def finish(self, model: MergedModel) -> None:
        """Prune to the final share if the training ended before, then remove pruned units from the trained `model`.

        The function stays what it was. Parameters are replaced: an optimiser made before holds the old ones.
        """
        self._prune(kept_units(self._total, self._schedule.final))
        for name, part in sparse_parts(model).items():
            part.keep(self._alive[name])
        model.update_config()

    def _prune(self, keep: int) -> None:
        """Keep the `keep` most important units alive; of equals, the first by layer, expert and place."""
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
    """True for the `keep` largest of scores [n], of equals the first; by selection: elements are too many to sort."""
    if keep == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - keep + 1).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero()[:, 0]
    kept[ties[: keep - int(kept.sum())]] = True
    return kept
