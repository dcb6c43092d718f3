"""The training loop that finetune, distill and compress share; it runs on several processes by accelerate."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from mcsmoe.distributed import fill, hollow, shard, whole
from mcsmoe.errors import ParameterError
from mcsmoe.params import Training
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import Batch, collate, length_grouped
from mcsmoe.tasks.task import Encoded
from mcsmoe.training.ahead import Ahead
from mcsmoe.training.optimiser import Optimiser
from mcsmoe.training.state import Best, Draws, Keeper, Stateful, Weights
from mcsmoe.training.together import draw_apart, own_rows, unused_without_gradient

CURVE_POINTS = 100
LOOK = 5
"""Steps between two looks at whether the loss is finite, and whether it is time to keep the state.

A look waits for the device.
"""

Losses = dict[str, Tensor]
"""Terms by name; `loss` is minimised, the others are only recorded."""


class Found(NamedTuple):
    """What a step has found: the terms of the loss, and the norm of the gradients before they were clipped."""

    terms: Losses
    norm: Tensor


class Planned(NamedTuple):
    """The rows of one step, from which epoch they are, and how many batches that epoch has left after them."""

    rows: list[Encoded]
    epoch: int
    left: int


class Hooks(Stateful, Protocol):
    """Calls before and after each step of the optimiser."""

    def before_step(self) -> None:
        """Called between the backward pass and the step; gradients are not clipped yet."""

    def after_step(self, step: int) -> None:
        """Called after step number `step` (from 1)."""


@dataclass
class Fit:
    """One training of `model` on the rows that `epoch(i)` returns; `loss(model, batch)` gives its terms.

    `batch` holds this process's rows, the terms are those of all processes' rows together: see `training.together`.
    """

    model: Any
    settings: Training
    epoch: Callable[[int], Sequence[Encoded]]
    loss: Callable[[nn.Module, Batch], Losses]
    pad: int
    causal: bool
    seed: int
    accelerator: Accelerator
    ready: Callable[[Batch], Batch] | None = None
    """Adds what does not depend on `model` to a batch, such as a teacher's answers, before `loss` gets it.

    It may run in a thread, beside the step before, so it must not draw torch's random numbers.
    """
    fsdp: bool = False
    """Shard weights, gradients and optimiser states over the processes."""
    hooks: Hooks | None = None
    checks: int = 0
    check: Callable[[Any], tuple[float, ...]] | None = None
    """Called `checks` times during training; the weights with the largest value are kept."""
    figures: Callable[[], dict[str, float]] = dict
    """Values for the curve beside the terms of the loss."""
    curve: list[dict[str, float]] = field(default_factory=list)
    keeper: Keeper | None = None
    """Keeps the state, so that an interrupted training goes on; without it, it starts anew."""

    def __post_init__(self) -> None:
        self.rows = self.epoch(0)
        self.steps = max(1, round(self.settings.epochs * math.ceil(len(self.rows) / self.settings.batch_size)))
        self._check_at = {round(self.steps * (i + 1) / self.checks) for i in range(self.checks)}
        self.precision = {name: value.dtype for name, value in self.model.named_parameters()}
        self._whole = hollow(self.model) if self.fsdp else None
        if not self.fsdp:
            self.model.to(self.accelerator.device)

    def run(self, description: str) -> None:
        """Train; `model` ends with its last weights, or with the best ones if `check` is given.

        With `fsdp`, `self.model` is then another object, whole in CPU memory. Raises `ParameterError` within `LOOK`
        steps if a term of the loss, the norm of the gradients or the value of `check` is NaN or infinite.
        """
        if self.fsdp:
            shard(self.model, self.accelerator.device)
        optimiser, best = Optimiser(self.model, self.settings, self.steps), Best(self.model)
        parts: dict[str, Stateful] = {"model": Weights(self.model), "optimiser": optimiser, "best": best}
        parts |= {"draws": Draws(self.accelerator)} | ({"hooks": self.hooks} if self.hooks else {})
        draw_apart(self.seed, self.accelerator.process_index)
        kept = self._resume(parts, best, description)
        done = kept.get("step", 0)
        planned = islice(self._planned(kept.get("epoch", 0), kept.get("left")), self.steps - done)
        model = self.model if self.fsdp else self.accelerator.prepare(self.model)
        model.train()
        with (
            progress(None, description, self.steps, self.accelerator.is_local_main_process, done=done) as bar,
            Ahead(planned, self._batch, self.ready is not None and self._a_core_is_idle) as batches,
        ):
            for step in range(done + 1, self.steps + 1):
                plan, batch = batches.take()
                found = self._step(step, model, optimiser, batch, batches.start)
                if self.hooks:
                    self.hooks.after_step(step)
                bar.update()
                self._record(step, found, bar)
                checks = self.check is not None and step in self._check_at
                due = (checks or step % LOOK == 0 or step == self.steps) and self._look(step, found)
                if self.check and checks:
                    best.offer(self._value(step, self.check(self.model)))
                if due and self.keeper and step < self.steps:
                    values = {"epoch": plan.epoch, "left": plan.left, "best": best.value, "curve": self.curve}
                    self.keeper.keep(step, parts, values)
        best.put_back()
        if self._whole is not None:
            self.model = fill(self._whole, self.model)

    def _resume(self, parts: dict[str, Stateful], best: Best, description: str) -> dict[str, Any]:
        """Take up the state that an earlier run has kept, and return its values; none if there is no state."""
        kept = self.keeper.load(parts) if self.keeper else None
        if kept is None:
            return {}
        self.curve, best.value = kept["curve"], kept["best"] and tuple(kept["best"])
        if self.accelerator.is_main_process:
            print(f"{description}: resuming after step {kept['step']} of {self.steps}", flush=True)
        return kept

    def _planned(self, first: int, left: int | None) -> Iterator[Planned]:
        """The rows of all steps without end, from the last `left` batches (None: all) of epoch `first` on."""
        for epoch in count(first):
            rows = self.epoch(epoch) if epoch > 0 else self.rows
            batches = length_grouped(rows, self.settings.batch_size, self.seed * 1000 + epoch)
            start = len(batches) - left if epoch == first and left is not None else 0
            for place in range(start, len(batches)):
                yield Planned([rows[i] for i in batches[place]], epoch, len(batches) - place - 1)

    def _step(
        self, step: int, model: nn.Module, optimiser: Optimiser, batch: Batch, meanwhile: Callable[[], None]
    ) -> Found:
        with unused_without_gradient(model) if self.fsdp else nullcontext():
            terms = self.loss(model, batch)
            meanwhile()
            self.accelerator.backward(terms["loss"] * optimiser.scale)
        if self.hooks:
            self.hooks.before_step()
        return Found(terms, optimiser.step(step))

    def _batch(self, plan: Planned) -> Batch:
        batch = self._share(plan.rows)
        return self.ready(batch) if self.ready else batch

    @property
    def _a_core_is_idle(self) -> bool:
        """Whether another thread can run a model on the CPU without taking time from this one.

        Not with `fsdp`: a sharded teacher's exchanges with other processes would mix with the model's own.
        """
        threads = 2 * torch.get_num_threads() * self.accelerator.num_processes
        return self.accelerator.device.type == "cpu" and not self.fsdp and threads <= (os.cpu_count() or 1)

    def _look(self, step: int, found: Found) -> bool:
        """Whether it is time to keep the state. Raises `ParameterError` if training has diverged."""
        values = {**found.terms, "the norm of the gradients": whole(found.norm)}
        wrong = [~value.detach().isfinite().all() for value in values.values()]
        due = torch.tensor(self.accelerator.is_main_process and self.keeper is not None and self.keeper.due)
        flags = torch.stack([*wrong, due.to(wrong[0].device)]).float()
        *counts, asked = self.accelerator.reduce(flags, "sum").tolist()
        for name, wrong_in in zip(values, counts, strict=True):
            if wrong_in:
                raise self._diverged(step, name)
        return bool(asked)

    def _value(self, step: int, value: tuple[float, ...]) -> tuple[float, ...]:
        """Record what `check` has found at `step`. Raises `ParameterError` if it is not finite."""
        if not all(math.isfinite(each) for each in value):
            raise self._diverged(step, "the value by which the best weights are chosen")
        self.curve.append({"step": step, "selection": round(value[0], 5)})
        return value

    def _diverged(self, step: int, what: str) -> ParameterError:
        # The state of a few steps ago would lead to the same place.
        if self.keeper:
            self.keeper.forget()
        name = f"{type(self.settings).__name__.lower()}.learning_rate"
        happened = f"training has diverged, and nothing is written: {what} is NaN or infinite"
        where = f"at step {step} of {self.steps} (looked at every {LOOK})"
        return ParameterError(name, self.settings.learning_rate, f"{happened} {where}; lower it, or warm up longer")

    def _share(self, rows: list[Encoded]) -> Batch:
        """This process's rows of a batch: see `own_rows`."""
        whole = collate(rows, self.pad, causal=self.causal)
        mine = own_rows(whole, self.accelerator.process_index, self.accelerator.num_processes)
        return {name: value.to(self.accelerator.device) for name, value in mine.items()}

    def _record(self, step: int, found: Found, bar: Any) -> None:
        if step % max(1, self.steps // CURVE_POINTS) == 0:
            values = {name: round(float(value.detach()), 5) for name, value in found.terms.items()}
            self.curve.append({"step": step, **values, **self.figures()})
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)


def make_accelerator() -> Accelerator:
    """The accelerator of this process; parameters may lack a gradient, since a batch may leave experts unused."""
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
