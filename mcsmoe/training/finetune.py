"""Fine-tuning on the task, of the full model and of the dense baseline."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.checkpoint.content import source_code
from mcsmoe.checkpoint.output import check_room_for
from mcsmoe.checkpoint.published import Published
from mcsmoe.evaluation.quality import likelihood
from mcsmoe.families import Family, MoELayer, family_of
from mcsmoe.params import Finetune, Params
from mcsmoe.tasks.batches import Batch, model_inputs
from mcsmoe.tasks.reading import hold_out
from mcsmoe.tasks.task import TASKS, Encoded, Example, Task
from mcsmoe.training.loop import Fit, Losses, make_accelerator
from mcsmoe.training.losses import balance_loss, cross_entropy, z_loss
from mcsmoe.training.state import rows_hash
from mcsmoe.training.together import counted_tokens
from mcsmoe.training.writing import train as train_and_write


class FullLoss:
    """Cross-entropy per label token, plus weighted z-loss and balance loss, each averaged over the sparse layers."""

    def __init__(self, family: Family, layers: Sequence[MoELayer], settings: Finetune) -> None:
        self._family, self._layers, self._settings = family, layers, settings
        self._logits: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Record the router logits of each forward pass of `model` while the context is open."""

        def record(layer: MoELayer) -> Any:
            block = model.get_submodule(layer.path)

            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                self._logits[layer.name] = self._family.routing(block, output).logits

            return hook

        handles = [
            model.get_submodule(layer.router_path).register_forward_hook(record(layer)) for layer in self._layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        """Return the terms `loss`, `task` and, for a sparse model, `router_z` and `balance`; see `Fit.loss`."""
        causal = self._family.causal
        task = cross_entropy(model(**model_inputs(batch, causal), use_cache=False).logits, batch["labels"])
        masks = {stack: mask.flatten() for stack, mask in counted_tokens(batch, causal).items()}
        pairs = [(self._logits[layer.name], masks[layer.stack]) for layer in self._layers]
        if not pairs:  # a dense model
            return {"loss": task, "task": task}
        router_z = torch.stack([z_loss(*pair) for pair in pairs]).mean()
        balance = torch.stack([balance_loss(*pair) for pair in pairs]).mean()
        loss = task + self._settings.router_z_loss * router_z + self._settings.balance_loss * balance
        return {"loss": loss, "task": task, "router_z": router_z, "balance": balance}


def selection_check(
    task: Task, rows: Sequence[Encoded], pad: int, batch_size: int
) -> Callable[[Any], tuple[float, ...]]:
    """Return a function of the model whose value is largest for the best checkpoint.

    The value is (share of exact answers, −cross-entropy) for a task with answers, (−cross-entropy,) for running text.
    """

    def check(model: Any) -> tuple[float, ...]:
        found = likelihood(model, rows, pad, batch_size)
        answers = task.generates or task.chooses
        return (found.sequence_accuracy, -found.cross_entropy) if answers else (-found.cross_entropy,)

    return check


def split_train(params: Params) -> tuple[list[Example], list[Example]]:
    """Return (train, selection): the examples to train on, and those held out to choose the best checkpoint."""
    return hold_out(TASKS[params.task.name].examples(params.task, "train"), params.task.selection, params.seed)


def finetune(
    params: Params,
    model: Any,
    tokenizer: Any,
    split: tuple[list[Example], list[Example]],
    output: Path,
    curve: Path,
    source: Path | None = None,
    beside: Published | None = None,
) -> None:
    """Train `model` by `params.finetune`; write the weights that did best on the selection split to `output`.

    The training curve goes to `curve`. `source` is the checkpoint that training starts from, `beside` its tensors: see
    `save_model`.
    Raises `DiskFullError` before training if `output` has no room, `CheckpointError` if the written checkpoint differs
    from the model in memory.
    """
    task, settings = TASKS[params.task.name], params.finetune
    train, selection = split
    check_room_for(model, output)
    family = family_of(model.config)
    family.hasten(model)
    held_out = task.encode(tokenizer, selection, params.task, params.seed)
    loss = FullLoss(family, family.layers(model.config), settings)
    fit = Fit(
        model=model,
        settings=settings,
        epoch=lambda number: task.encode(tokenizer, train, params.task, params.seed + number),
        loss=loss,
        pad=tokenizer.pad_token_id,
        causal=family.causal,
        seed=params.seed,
        accelerator=make_accelerator(),
        fsdp=params.launch.fsdp,
        checks=settings.evaluations,
        check=selection_check(task, held_out, tokenizer.pad_token_id, settings.batch_size),
    )
    key = {"code": source_code(params.plugins), "selection": rows_hash(held_out), "evaluations": settings.evaluations}
    train_and_write(
        fit,
        output.name,
        tokenizer,
        output,
        curve,
        source,
        beside,
        minutes=params.launch.checkpoint_minutes,
        key=key,
        during=loss.watching(model),
    )
