"""The training loop that finetune, distill and compress share; accelerate carries it to several processes."""

import math
from collections.abc import Callable, Sequence
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
from mcsmoe.tasks.batches import IGNORED, Batch, collate, length_grouped
from mcsmoe.tasks.task import Encoded

BETAS = (0.9, 0.98)
EPSILON = 1e-6


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.AdamW:
    """AdamW over trainable parameters; biases and normalisation scales (fewer than two axes) do not decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear rise over `warmup_steps`, then linear fall to zero at `total_steps`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, factor)


CURVE_POINTS = 100

Losses = dict[str, Tensor]
"""Named terms; `loss` is the one that is minimised, the others are shown."""


class Hooks(Protocol):
    """What may act between the backward pass and the optimiser's step, and after it."""

    def before_step(self) -> None:
        """Gradients are there, not yet clipped; weights have not moved."""

    def after_step(self, step: int) -> None:
        """Weights have moved for the `step`-th time (from 1)."""


@dataclass
class Fit:
    """A training of `model` on the rows of `epoch(i)`; `loss(model, batch, label_tokens)` gives its terms.

    `label_tokens` is the number of label tokens of the whole batch over all processes, divided by the number
    of processes: a loss divided by it has the gradient of the same batch on one process.
    """

    model: Any
    settings: Training
    epoch: Callable[[int], Sequence[Encoded]]
    loss: Callable[[nn.Module, Batch, Tensor], Losses]
    pad: int
    causal: bool
    seed: int
    accelerator: Accelerator
    fsdp: bool = False
    """Spread weights, gradients and optimiser states over the processes."""
    hooks: Hooks | None = None
    checks: int = 0
    check: Callable[[Any], tuple[float, ...]] | None = None
    """Called `checks` times; the weights with the largest value are kept."""
    figures: Callable[[], dict[str, float]] = dict
    """What the curve shows beside the loss's terms."""
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
        """Train; `model` ends with its last weights, or with the best ones where `check` is given.

        With `fsdp` that is another model than it was, whole in CPU memory.
        """
        if self.fsdp:
            shard(self.model, self.accelerator.device)
        optimizer = make_optimizer(self.model, self.settings)
        schedule = make_schedule(optimizer, self.settings.warmup_steps, self.steps)
        optimizer = self.accelerator.prepare(optimizer)
        model = self.model if self.fsdp else self.accelerator.prepare(self.model)
        model.train()
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
        tokens = torch.tensor(sum(len(r.target) for r in rows) / self.accelerator.num_processes)
        terms = self.loss(model, batch, tokens.to(self.accelerator.device))
        optimizer.zero_grad()
        self.accelerator.backward(terms["loss"])
        if self.hooks:
            self.hooks.before_step()
        self.accelerator.clip_grad_norm_(model.parameters(), self.settings.max_grad_norm)
        optimizer.step()
        return terms

    def _share(self, rows: list[Encoded]) -> Batch:
        """This process's rows of the batch; a process without any repeats a row whose labels do not count."""
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        batch = collate(mine or rows[:1], self.pad, causal=self.causal)
        if not mine:
            batch["labels"].fill_(IGNORED)
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

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
    """The accelerator of this process; experts that a batch leaves unused must not stop gradients' reduction."""
    return Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])


def write_training(fit: Fit, tokenizer: Any, output: Path, curve: Path) -> None:
    """Write the trained model to `output` once it is verified, then the curve; only one process writes.

    Raises `CheckpointError` if the saved model is not the one in memory; `output` is then as it was.
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
    # Plots need every row to have the same columns.
    columns = dict.fromkeys(name for row in fit.curve for name in row)
    write_json(curve, [{name: row.get(name) for name in columns} for row in fit.curve])
