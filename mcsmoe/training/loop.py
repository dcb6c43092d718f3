"""The training loop that finetune, distill and compress share; it runs on several processes by accelerate."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mcsmoe.checkpoint.output import atomic_directory, write_json
from mcsmoe.checkpoint.save import save_model
from mcsmoe.checkpoint.verify import probe_batch, verify_checkpoint
from mcsmoe.distributed import fill, hollow, shard
from mcsmoe.params import Training
from mcsmoe.progress import progress
from mcsmoe.tasks.batches import Batch, collate, length_grouped
from mcsmoe.tasks.task import Encoded
from mcsmoe.training.together import draw_apart, own_rows, unused_without_gradient

BETAS = (0.9, 0.98)
EPSILON = 1e-6


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    """AdamW over trainable parameters; those with fewer than two axes (biases, normalisation) do not decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up over `warmup_steps`, then linear decay to zero at `total_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, factor)


CURVE_POINTS = 100

Losses = dict[str, Tensor]
"""Terms by name; `loss` is minimised, the others are only recorded."""


class Hooks(Protocol):
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

    def __post_init__(self) -> None:
        self._rows = self.epoch(0)
        self._batches: list[list[int]] = []
        self._per_epoch = math.ceil(len(self._rows) / self.settings.batch_size)
        self.steps = max(1, round(self.settings.epochs * self._per_epoch))
        self._check_at = {round(self.steps * (i + 1) / self.checks) for i in range(self.checks)}
        self._best: tuple[tuple[float, ...], dict[str, Tensor]] | None = None
        self._whole = hollow(self.model) if self.fsdp else None
        if not self.fsdp:
            self.model.to(self.accelerator.device)

    def run(self, description: str) -> None:
        """Train; `model` ends with its last weights, or with the best ones if `check` is given.

        With `fsdp`, `self.model` is then another object, whole in CPU memory.
        """
        if self.fsdp:
            shard(self.model, self.accelerator.device)
        optimizer = make_optimizer(self.model, self.settings)
        schedule = make_schedule(optimizer, self.settings.warmup_steps, self.steps)
        optimizer = self.accelerator.prepare(optimizer)
        model = self.model if self.fsdp else self.accelerator.prepare(self.model)
        model.train()
        draw_apart(self.seed, self.accelerator.process_index)
        with progress(None, description, self.steps, self.accelerator.is_local_main_process) as bar:
            for step in range(1, self.steps + 1):
                terms = self._step(model, optimizer, self._next_rows(step))
                schedule.step()
                if self.hooks:
                    self.hooks.after_step(step)
                bar.update()
                self._record(step, terms, bar)
                if self.check and step in self._check_at:
                    self._keep_best(step, self.check(self.model))
        if self._best:
            self.model.load_state_dict(self._best[1])
        if self._whole is not None:
            self.model = fill(self._whole, self.model)

    def _next_rows(self, step: int) -> list[Encoded]:
        if not self._batches:
            number = (step - 1) // self._per_epoch
            if number > 0:
                self._rows = self.epoch(number)
            order = length_grouped(self._rows, self.settings.batch_size, self.seed * 1000 + number)
            self._batches = order[::-1]
        return [self._rows[i] for i in self._batches.pop()]

    def _step(self, model: nn.Module, optimizer: Any, rows: list[Encoded]) -> Losses:
        batch = self._share(rows)
        optimizer.zero_grad()
        with unused_without_gradient(model) if self.fsdp else nullcontext():
            terms = self.loss(model, batch)
            self.accelerator.backward(terms["loss"])
        if self.hooks:
            self.hooks.before_step()
        self.accelerator.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
        optimizer.step()
        return terms

    def _share(self, rows: list[Encoded]) -> Batch:
        """This process's rows of a batch: see `own_rows`."""
        whole = collate(rows, self.pad, causal=self.causal)
        mine = own_rows(whole, self.accelerator.process_index, self.accelerator.num_processes)
        return {name: value.to(self.accelerator.device) for name, value in mine.items()}

    def _record(self, step: int, terms: Losses, bar: Any) -> None:
        if step % max(1, self.steps // CURVE_POINTS) == 0:
            values = {name: round(float(value.detach()), 5) for name, value in terms.items()}
            self.curve.append({"step": step, **values, **self.figures()})
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

    def _keep_best(self, step: int, value: tuple[float, ...]) -> None:
        self.curve.append({"step": step, "selection": round(value[0], 5)})
        if self._best is None or value > self._best[0]:
            self._best = value, {name: v.detach().clone() for name, v in self.model.state_dict().items()}


def make_accelerator() -> Accelerator:
    """The accelerator of this process; parameters may lack a gradient, since a batch may leave experts unused."""
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def write_training(fit: Fit, tokenizer: Any, output: Path, curve: Path) -> None:
    """Write the trained model to `output`, verified, and its curve to `curve`; only the main process writes.

    Raises `CheckpointError` if the saved model differs from the one in memory; `output` then stays as it was.
    """
    if not fit.accelerator.is_main_process:
        return
    model = fit.model.eval()
    model.to("cpu")
    probe = probe_batch(model.config.vocab_size, fit.causal)
    with torch.no_grad():
        logits = model(**probe).logits
    with atomic_directory(output) as scratch:
        written = save_model(model, tokenizer, scratch)
        verify_checkpoint(scratch, written, probe, logits)
    # Plots need the same columns in every row.
    columns = dict.fromkeys(name for row in fit.curve for name in row)
    write_json(curve, [{name: row.get(name) for name in columns} for row in fit.curve])
