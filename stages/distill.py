"""Recover a merged model by knowledge distillation from the full one."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start
from stages.launch import launched

TEACHER = Path("artifacts/finetune")
SOURCE = Path("artifacts/merge")
OUTPUT = Path("artifacts/distill")


def main(method: Annotated[str, Option(help="Recipe whose merged model recovers.")]) -> None:
    """Train artifacts/merge/METHOD with artifacts/finetune as teacher; write artifacts/distill/METHOD."""
    params = start()
    from mcsmoe.checkpoint.load import check_source

    check_source(SOURCE / method)
    check_source(TEACHER)
    if not launched(params, "stages.distill"):
        return
    from mcsmoe.checkpoint.load import load_model, load_tokenizer
    from mcsmoe.checkpoint.room import check_room_for
    from mcsmoe.training.output import write_training
    from mcsmoe.training.recovery import make_recovery

    student, tokenizer = load_model(SOURCE / method), load_tokenizer(SOURCE / method)
    check_room_for(student, OUTPUT / method)
    fit = make_recovery(params, params.distill, student, load_model(TEACHER), tokenizer)
    fit.run(f"distill {method}")
    write_training(fit, tokenizer, OUTPUT / method, Path("plots/distill") / f"{method}.json")


if __name__ == "__main__":
    run(main)
