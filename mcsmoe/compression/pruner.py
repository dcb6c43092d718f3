"""Gradual pruning of output neurons of S while a factorised model trains."""

import torch
from torch import Tensor

from mcsmoe.compression.importance import moving_average, row_sensitivity
from mcsmoe.compression.merged_model import MergedModel, factorised_weights
from mcsmoe.compression.remove import remove_rows
from mcsmoe.compression.schedule import CubicSchedule
from mcsmoe.compression.size import kept_rows
from mcsmoe.params import Compress


class Pruner:
    """One global threshold over the rows of S of all layers (LoSparse, arXiv 2306.11222, by whole rows).

    In every step: backward → `before_step()` → clip gradients → optimiser step → `after_step(step)`; after
    the last one `finish()`. A pruned row stays pruned: whatever momentum does to it is undone after each
    step. Processes that share averaged gradients prune the same rows.

    model: factorised, not wrapped; steps: optimiser steps of the whole training. Raises `ParameterError` if
    the schedule does not fit.
    """

    def __init__(self, model: MergedModel, settings: Compress, steps: int) -> None:
        self._model = model
        self._modules = factorised_weights(model)
        self._schedule = CubicSchedule.of(settings, steps)
        self._beta = settings.beta
        rows = {name: module.rows for name, module in self._modules.items()}
        self._importance = {n: torch.zeros(len(r), device=r.device) for n, r in rows.items()}
        self._alive = {n: torch.ones(len(r), dtype=torch.bool, device=r.device) for n, r in rows.items()}
        self._total = self._left = sum(len(r) for r in rows.values())

    @property
    def remaining(self) -> float:
        """Share of all rows of S that are not pruned."""
        return self._left / self._total

    @torch.no_grad()
    def before_step(self) -> None:
        """Update the importance from the gradients of this step; call it after backward, before clipping.

        Gradients of pruned rows are zeroed: they must not count in the norm that clipping looks at.
        """
        for name, module in self._modules.items():
            gradient = module.rows.grad
            if gradient is None:  # no token reached this layer
                score = torch.zeros_like(self._importance[name])
            else:
                score = row_sensitivity(module.rows, gradient)
                self._clear(gradient, name)
            self._importance[name] = moving_average(self._importance[name], score, self._beta)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Prune as the schedule says after optimiser step `step` (1 is the first), and clear pruned rows."""
        if self._schedule.prunes(step):
            self._prune(kept_rows(self._total, self._schedule.remaining(step)))
        for name, module in self._modules.items():
            self._clear(module.rows, name)

    @torch.no_grad()
    def finish(self) -> None:
        """Prune to the final share if the training ended before, then remove pruned rows from the model."""
        self._prune(kept_rows(self._total, self._schedule.final))
        remove_rows(self._model, self._alive)

    def _prune(self, keep: int) -> None:
        """Keep the `keep` most important rows alive; of equals, the first by layer, expert and row."""
        if keep >= self._left:
            return
        scores = torch.cat([i.masked_fill(~self._alive[n], -1).cpu() for n, i in self._importance.items()])
        order = scores.argsort(descending=True, stable=True)
        kept = torch.zeros(self._total, dtype=torch.bool)
        kept[order[:keep]] = True
        parts = kept.split([len(alive) for alive in self._alive.values()])
        self._alive = {n: part.to(a.device) for (n, a), part in zip(self._alive.items(), parts)}
        self._left = keep

    def _clear(self, rows: Tensor, name: str) -> None:
        """Zero the pruned rows of `rows` [n, in] in place."""
        if self._left < self._total:
            rows.masked_fill_(~self._alive[name][:, None], 0)
