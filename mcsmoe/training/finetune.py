"""Training of a whole model on the task: the full one, and the dense baseline beside it."""

from pathlib import Path
from typing import Any

from mcsmoe.architectures.registry import family_of
from mcsmoe.checkpoint.room import check_room_for
from mcsmoe.params import Params
from mcsmoe.tasks.selection import hold_out
from mcsmoe.tasks.task import TASKS, Example
from mcsmoe.training.full import FullLoss
from mcsmoe.training.loop import Fit, make_accelerator
from mcsmoe.training.output import write_training
from mcsmoe.training.selection import selection_check


def split_train(params: Params) -> tuple[list[Example], list[Example]]:
    """(train, selection): the examples to learn from, and those held out to choose the best checkpoint."""
    return hold_out(TASKS[params.task.name].examples(params.task, "train"), params.task.selection, params.seed)


def finetune(
    params: Params,
    model: Any,
    tokenizer: Any,
    split: tuple[list[Example], list[Example]],
    output: Path,
    curve: Path,
) -> None:
    """Train `model` as `params.finetune` says; write what did best on the selection split to `output`.

    Raises `DiskFullError` before the training, `CheckpointError` if what was written is not the model in memory.
    """
    task, settings = TASKS[params.task.name], params.finetune
    train, selection = split
    check_room_for(model, output)
    family = family_of(model.config)
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
    with loss.watching(model):
        fit.run(output.name)
    write_training(fit, tokenizer, output, curve)
