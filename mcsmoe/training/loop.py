"""The training loop that finetune, distill and compress share; it runs on several processes by accelerate."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
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
        self._batches: list[list[int]] = []
        self._epochs = 0  # begun so far
        self._per_epoch = math.ceil(len(self.rows) / self.settings.batch_size)
        self.steps = max(1, round(self.settings.epochs * self._per_epoch))
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
        done = self._resume(parts, best, description)
        model = self.model if self.fsdp else self.accelerator.prepare(self.model)
        model.train()
        with progress(None, description, self.steps, self.accelerator.is_local_main_process, done=done) as bar:
            for step in range(done + 1, self.steps + 1):
                found = self._step(step, model, optimiser, self._next_rows())
                if self.hooks:
                    self.hooks.after_step(step)
                bar.update()
                self._record(step, found, bar)
                checks = self.check is not None and step in self._check_at
                due = (checks or step % LOOK == 0 or step == self.steps) and self._look(step, found)
                if self.check and checks:
                    best.offer(self._value(step, self.check(self.model)))
                if due and self.keeper and step < self.steps:
                    left = len(self._batches)
                    values = {"epochs": self._epochs, "left": left, "best": best.value, "curve": self.curve}
                    self.keeper.keep(step, parts, values)
        best.put_back()
        if self._whole is not None:
            self.model = fill(self._whole, self.model)

    def _resume(self, parts: dict[str, Stateful], best: Best, description: str) -> int:
        """Take up the state that an earlier run has kept; return how many steps are done."""
        kept = self.keeper.load(parts) if self.keeper else None
        if kept is None:
            return 0
        self.curve, best.value = kept["curve"], kept["best"] and tuple(kept["best"])
        self._epochs = kept["epochs"] - 1
        self._begin_epoch()
        del self._batches[kept["left"] :]
        done: int = kept["step"]
        if self.accelerator.is_main_process:
            print(f"{description}: resuming after step {done} of {self.steps}", flush=True)
        return done

    def _next_rows(self) -> list[Encoded]:
        if not self._batches:
            self._begin_epoch()
        return [self.rows[i] for i in self._batches.pop()]

    def _begin_epoch(self) -> None:
        number = self._epochs
        if number > 0:
            self.rows = self.epoch(number)
        self._batches = length_grouped(self.rows, self.settings.batch_size, self.seed * 1000 + number)[::-1]
        self._epochs += 1

    def _step(self, step: int, model: nn.Module, optimiser: Optimiser, rows: list[Encoded]) -> Found:
        batch = self._share(rows)
        with unused_without_gradient(model) if self.fsdp else nullcontext():
            terms = self.loss(model, batch)
            self.accelerator.backward(terms["loss"] * optimiser.scale)
        if self.hooks:
            self.hooks.before_step()
        return Found(terms, optimiser.step(step))

    def _look(self, step: int, found: Found) -> bool:
        """Whether it is time to keep the state. Raises `ParameterError` if training has diverged."""
        values = {**found.terms, "the norm of the gradients": whole(found.norm)}
        wrong = [~value.detach().isfinite().all() for value in values.values()]
        due = torch.tensor(self.accelerator.is_main_process and self.keeper is not None and self.keeper.due)
        flags = torch.stack([*wrong, due.to(wrong[0].device)]).float()
        *counts, asked = self.accelerator.reduce(flags, "sum").tolist()
        for name, count in zip(values, counts, strict=True):
            if count:
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
