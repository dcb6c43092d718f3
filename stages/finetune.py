"""Fine-tune the full model on the task."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start
from stages.interrupt import CHILD
from stages.launch import LAUNCHED, launched


def main(
    output: Annotated[Path, Option(help="Directory for the checkpoint.")] = Path("artifacts/finetune"),
) -> None:
    """Train the model of params.yaml on its task; keep the checkpoint that does best on the selection split.

    With finetune.epochs 0, take the model as it is.
    """
    params = start()
    if LAUNCHED not in os.environ:
        # In a process of its own: what later stages would refuse does not change what this one computes.
        checked = subprocess.run([sys.executable, "-m", "stages.check"], env=os.environ | CHILD)
        if checked.returncode:
            sys.exit(checked.returncode)
    curve = Path("plots/finetune.json")
    if params.finetune.epochs == 0:
        from mcsmoe.training.untrained import take

        take(params.model, output, curve)
        return
    if not launched(params, "stages.finetune"):
        return
    from mcsmoe.training.finetune import finetune, split_train
    from mcsmoe.training.start import start_model

    split = split_train(params)
    model, tokenizer = start_model(params.model, split[0])
    finetune(params, model, tokenizer, split, output, curve)


if __name__ == "__main__":
    run(main)
