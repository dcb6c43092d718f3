"""Measure one checkpoint: the task's metrics, and what the model costs to store and run.

python -m stages.evaluate --checkpoint DIR --output FILE          the task of params.yaml, as dvc calls it
python -m stages.evaluate --checkpoint google-t5/t5-base --task squad      any model, any task; no params.yaml is read
"""

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from mcsmoe.command import prepare
from mcsmoe.errors import UserError
from stages.common import run, start

SEED = 0
"""What a task draws for its test split must not depend on the training seed."""

FLOPS_SAMPLE = 32
"""Number of test examples on which FLOPs are counted."""


def main(
    checkpoint: Annotated[str, Option(help="Directory of the checkpoint; with --task also a hub id.")],
    output: Annotated[Path | None, Option(help="JSON file for the figures; without it they are printed.")] = None,
    task: Annotated[str | None, Option(help="Task to measure instead of the one in params.yaml.")] = None,
    data: Annotated[str | None, Option(help="Directory or hub id of its data; without it the task's own.")] = None,
    subset: Annotated[str | None, Option(help="Configuration of a hub data set; without it the task's own.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Measure the first examples only.")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Examples at a time; 32 by default.")] = None,
) -> None:
    """Measure quality, parameters, bytes, experts and FLOPs per token of CHECKPOINT; write them to OUTPUT."""
    directory = Path(checkpoint)
    source: Path | str = directory
    if task is None:
        if {data, subset, limit, batch_size} != {None}:
            raise UserError("--data, --subset, --limit and --batch-size go with --task; else params.yaml says it")
        params = start()
        settings, batch_size, limit = params.task, params.evaluate.batch_size, params.evaluate.limit
    else:
        settings, batch_size = standalone(task, data, subset), batch_size or 32
        prepare(seed=SEED)
        source = directory if directory.is_dir() else checkpoint
    import torch

    from mcsmoe.checkpoint.load import load_model, load_tokenizer, local_directory
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.evaluation.cost import flops_per_token, size
    from mcsmoe.evaluation.quality import quality
    from mcsmoe.tasks.task import TASKS

    measured = TASKS[settings.name]
    examples = measured.examples(settings, "test")[:limit]
    model, tokenizer = load_model(source, any_family=True), load_tokenizer(source, any_family=True)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    scores = quality(model, tokenizer, measured, settings, examples, batch_size, SEED)
    sample = measured.encode(tokenizer, examples[:FLOPS_SAMPLE], settings, SEED)[:FLOPS_SAMPLE]
    figures = {name: round(score, 6) for name, score in scores.items()} | size(model, local_directory(source))
    figures |= {"flops_per_token": round(flops_per_token(model, sample, tokenizer.pad_token_id))}
    if output is None:
        print(json.dumps(figures, indent=2))
    else:
        write_json(output, figures)
        print(f"{checkpoint}: {measured.metric} {scores[measured.metric]:.4f}")


def standalone(name: str, data: str | None, subset: str | None) -> Any:
    """Settings of a task without a params file, with the task's own lengths; `data` is a directory or a hub id."""
    from mcsmoe.checkpoint.load import HUB_ID
    from mcsmoe.params import TaskSection
    from mcsmoe.tasks.task import TASKS

    source, target = TASKS[name].lengths
    local = data is not None and (Path(data).is_dir() or not HUB_ID.fullmatch(data))
    return TaskSection(
        name=name,
        data=data if local else None,
        hub=None if local else data,
        subset=subset,
        column=None,
        revision=None,
        max_source_length=source,
        max_target_length=target,
        selection=1,
        train_limit=None,
    )


if __name__ == "__main__":
    run(main)
