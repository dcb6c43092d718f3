"""Make each merged weight low rank plus a few sparse rows, while it learns from the full model."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start
from stages.launch import launched

TEACHER = Path("artifacts/finetune")
SOURCE = Path("artifacts/distill")
OUTPUT = Path("artifacts/compress")


def main(method: Annotated[str, Option(help="Recipe whose distilled model is compressed.")]) -> None:
    """Compress artifacts/distill/METHOD with artifacts/finetune as teacher; write artifacts/compress/METHOD."""
    params = start()
    from mcsmoe.checkpoint.load import check_source

    check_source(SOURCE / method)
    check_source(TEACHER)
    if not launched(params, "stages.compress"):
        return
    from mcsmoe.architectures.exclude import excluded_layers
    from mcsmoe.architectures.registry import sparse_layers
    from mcsmoe.checkpoint.load import load_model, load_tokenizer
    from mcsmoe.checkpoint.room import check_room_for
    from mcsmoe.compression.factorise import factorise_model
    from mcsmoe.compression.pruner import Pruner
    from mcsmoe.modeling.modeling_mcsmoe_switch import FactorisedLinears
    from mcsmoe.training.output import write_training
    from mcsmoe.training.recovery import make_recovery

    student, tokenizer = load_model(SOURCE / method), load_tokenizer(SOURCE / method)
    check_room_for(student, OUTPUT / method)
    excluded = excluded_layers(params.merge.exclude, sparse_layers(student.config))
    factorise_model(student, params.compress, FactorisedLinears.from_factors, excluded)
    fit = make_recovery(params, params.compress, student, load_model(TEACHER), tokenizer)
    pruner = Pruner(student, params.compress, fit.steps)
    fit.hooks, fit.figures = pruner, lambda: {"remaining": pruner.remaining}
    fit.run(f"compress {method}")
    pruner.finish()
    write_training(fit, tokenizer, OUTPUT / method, Path("plots/compress") / f"{method}.json")


if __name__ == "__main__":
    run(main)
