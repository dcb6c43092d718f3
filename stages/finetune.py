"""Fine-tune the full model on the task."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start
from stages.launch import LAUNCHED, launched


def main(
    output: Annotated[Path, Option(help="Directory for the checkpoint.")] = Path("artifacts/finetune"),
) -> None:
    """Train the model of params.yaml on its task; keep the checkpoint that does best on the selection split."""
    params = start()
    if LAUNCHED not in os.environ:
        # In a process of its own: what later stages would refuse does not change what this one computes.
        checked = subprocess.run([sys.executable, "-m", "stages.check"])
        if checked.returncode:
            sys.exit(checked.returncode)
    if not launched(params, "stages.finetune"):
        return
    from mcsmoe.architectures.registry import family_of
    from mcsmoe.checkpoint.room import check_room_for
    from mcsmoe.tasks.selection import hold_out
    from mcsmoe.tasks.task import TASKS
    from mcsmoe.training.full import FullLoss
    from mcsmoe.training.loop import Fit, make_accelerator
    from mcsmoe.training.output import write_training
    from mcsmoe.training.selection import selection_check
    from mcsmoe.training.start import start_model

    task, settings = TASKS[params.task.name], params.finetune
    train, selection = hold_out(task.examples(params.task, "train"), params.task.selection, params.seed)
    model, tokenizer = start_model(params.model, train)
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
        seed=params.seed,
        accelerator=make_accelerator(),
        checks=settings.evaluations,
        check=selection_check(task, held_out, tokenizer.pad_token_id, settings.batch_size),
    )
    with loss.watching(model):
        fit.run("finetune")
    write_training(fit, tokenizer, output, Path("plots/finetune.json"))


if __name__ == "__main__":
    run(main)
