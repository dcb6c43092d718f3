"""A training step of ours beside one written by hand, and where the time of a step with many small experts goes.

python -m benchmarks.step [--quick]

The loop by hand is plain torch with the same models, loss, pruner and optimiser. Its batches are padded before the
clock starts; ours are made within it.
"""

import copy
import random
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from torch import nn
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from benchmarks.side_by_side import Claim, in_turns, ratio, save, table
from benchmarks.step_profile import product_seconds, profiled
from mcsmoe.command import prepare
from mcsmoe.compression.factorise import factorise_model
from mcsmoe.compression.pruner import Pruner
from mcsmoe.families import family_of
from mcsmoe.families.experts import mapped_model
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.params import Params
from mcsmoe.tasks.batches import Batch, collate, length_grouped
from mcsmoe.tasks.task import Encoded
from mcsmoe.training.distillation import TeacherLoss
from mcsmoe.training.finetune import FullLoss
from mcsmoe.training.loop import Fit, make_accelerator
from mcsmoe.training.optimiser import BETAS, EPSILON, decays, rate_factor

LIMIT = 1.05
PAD = 0
STAGES = ("finetune", "distill", "compress")


class Size(NamedTuple):
    """A model by what differs from the default, and its batches: rows, and least and most tokens of each."""

    config: dict[str, int]
    rows: int
    tokens: tuple[int, int]
    steps: int


SIZES = {
    "default": Size({}, 64, (4, 12), 20),
    "larger": Size({"d_model": 256, "d_ff": 1024, "d_kv": 32, "num_heads": 8}, 4, (32, 48), 4),
}
MANY = Size({"num_experts": 32}, 64, (4, 12), 10)
"""The default with 32 experts a layer."""


@dataclass
class Work:
    """A stage's training at one size, to run by our loop or by hand."""

    stage: str
    model: Any
    loss: Any
    settings: Any
    rows: list[Encoded]
    steps: int

    def hooks(self) -> Pruner | None:
        """A new pruner, if the stage prunes."""
        return Pruner(self.model, self.settings, self.steps) if self.stage == "compress" else None

    def ours(self) -> None:
        """Run `Fit`."""
        fit = Fit(
            model=self.model,
            settings=self.settings,
            epoch=lambda number: self.rows,
            loss=self.loss,
            pad=PAD,
            causal=False,
            seed=0,
            accelerator=make_accelerator(),
            hooks=self.hooks(),
        )
        with self.watching():
            fit.run(self.stage)

    def by_hand(self, batches: list[Batch]) -> None:
        """The same steps in plain torch."""
        settings, pruner = self.settings, self.hooks()
        named = [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]
        groups = [
            {"params": [p for name, p in named if decays(self.model, name, p) == decay], "weight_decay": rate}
            for decay, rate in ((True, settings.weight_decay), (False, 0.0))
        ]
        adam = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=EPSILON, fused=True)
        parameters = [value for _, value in named]
        self.model.train()
        with self.watching():
            for step, batch in enumerate(batches, 1):
                self.loss(self.model, batch)["loss"].backward()
                if pruner:
                    pruner.before_step()
                nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
                for group in adam.param_groups:
                    group["lr"] = settings.learning_rate * rate_factor(step, settings.warmup_steps, self.steps)
                adam.step()
                adam.zero_grad()
                if pruner:
                    pruner.after_step(step)

    def watching(self) -> Any:
        """What the loss needs to see."""
        return self.loss.watching(self.model) if isinstance(self.loss, FullLoss) else nullcontext()


def work(stage: str, size: Size, params: Params) -> Work:
    """A stage's training on rows of random tokens, from random weights."""
    torch.manual_seed(0)
    assert params.model.tokenizer is not None  # the default trains one
    vocabulary = params.model.tokenizer.vocab_size
    values = params.model.config | {"vocab_size": vocabulary, "decoder_start_token_id": PAD} | size.config
    config = SwitchTransformersConfig(**{name: value for name, value in values.items() if name != "model_type"})
    full: Any = SwitchTransformersForConditionalGeneration(config)
    family = family_of(config)
    family.hasten(full)
    settings = getattr(params, stage).model_copy(update={"epochs": 1, "batch_size": size.rows})
    rng = random.Random(0)

    def row() -> list[int]:
        return rng.choices(range(2, vocabulary), k=rng.randint(*size.tokens))

    rows = [Encoded(row(), row()) for _ in range(size.rows * size.steps)]
    if stage == "finetune":
        return Work(stage, full, FullLoss(family, family.layers(config), settings), settings, rows, size.steps)
    student = mapped_model(copy.deepcopy(full))
    for layer in family.layers(config):
        student.get_submodule(layer.router_path).requires_grad_(False)
    if stage == "compress":
        factorise_model(student, params.compress, FactorisedLinears.from_factors, [])
    return Work(stage, student, TeacherLoss(full, settings.loss), settings, rows, size.steps)


def padded(work: Work, size: Size) -> list[Batch]:
    """The batches of `work` in the order in which ours draws them, which groups rows of like length."""
    order = length_grouped(work.rows, size.rows, 0)
    return [collate([work.rows[i] for i in indices], PAD, causal=False) for indices in order]


def main(quick: bool = False) -> None:
    """Measure the three stages at two sizes, and profile a step with 32 experts."""
    prepare(0, 1)
    params = Params.load(Path("params.yaml"))
    lines: list[list[object]] = []
    figures: dict[str, Any] = {}
    claims: list[Claim] = []
    for name, size in SIZES.items():
        for stage in STAGES:
            each = work(stage, size, params)
            by_hand = partial(each.by_hand, padded(each, size))
            times = in_turns({"ours": each.ours, "by hand": by_hand}, rounds=2 if quick else 9)
            clock, cpu = (ratio(times["ours"], times["by hand"], cpu=kind) for kind in (False, True))
            mine, theirs = (1000 * times[who].median / size.steps for who in ("ours", "by hand"))
            lines.append([f"{stage}, {name}", f"{mine:.1f}", f"{theirs:.1f}", clock, cpu])
            print(*lines[-1], sep="\t", flush=True)
            figures[f"{stage}, {name}"] = {"times": times, "clock": clock, "cpu": cpu}
            claims.append(Claim(f"{stage} step, {name} size: CPU seconds, ours / by hand", cpu.median, LIMIT))
    many = work("finetune", MANY, params)
    parts = profiled(many.ours, many.steps)
    alone = 1000 * product_seconds(many.ours) / many.steps
    head = ["finetune step with 32 experts", "ms", "share"]
    shares = f"{table(head, parts)}\nIts products on their own, one after another: {alone:.1f} ms.\n"
    print(shares)
    head = ["step", "ours, ms", "by hand, ms", "ratio by the clock", "ratio of CPU seconds"]
    text = f"{table(head, lines)}\n{shares}"
    figures["32 experts, ms"] = {name: ms for name, ms, _ in parts} | {"products on their own": alone}
    save(
        "step", "A training step beside one written by hand", "python -m benchmarks.step", text, figures, claims, quick
    )


if __name__ == "__main__":
    typer.run(main)
