"""Fine-tune the full model on the task."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import FIGURES, run, start
from stages.launch import launched


def main(
    output: Annotated[Path, Option(help="Directory for the checkpoint.")] = Path("artifacts/finetune"),
) -> None:
    """Train the model of params.yaml on its task; keep the checkpoint that does best on the selection split.

    With finetune.epochs 0, write the model as it is, without training.
    """
    curve = FIGURES / "curves/finetune.json"
    params = start(files=[curve], checkpoints=[output])
    if params.finetune.epochs == 0:
        from mcsmoe.checkpoint.output import write_json
        from mcsmoe.training.untrained import take

        take(params.model, output)
        write_json(curve, [])
        return
    if not launched(params, "stages.finetune"):
        return
    from mcsmoe.training.finetune import finetune, split_train
    from mcsmoe.training.start import origin_directory, source_tensors, start_model

    split = split_train(params)
    model, tokenizer = start_model(params.model, split[0])
    beside = source_tensors(params.model)
    if beside is not None:
        beside.tell()
    finetune(params, model, tokenizer, split, output, curve, origin_directory(params.model), beside)


if __name__ == "__main__":
    run(main)
