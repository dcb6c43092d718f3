"""Measure one checkpoint: the task's figures, and what it costs to keep and to run."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start

SEED = 0
"""Whatever a task draws for its test split is the same for every training seed."""

FLOPS_SAMPLE = 32
"""Examples of the test split on which FLOPs are counted."""


def main(
    checkpoint: Annotated[Path, Option(help="Directory of the checkpoint.")],
    output: Annotated[Path, Option(help="JSON file for the figures.")],
) -> None:
    """Measure quality, parameters, bytes, experts and FLOPs per token of CHECKPOINT; write them to OUTPUT."""
    params = start()
    from mcsmoe.checkpoint.atomic import write_json
    from mcsmoe.checkpoint.load import load_model, load_tokenizer
    from mcsmoe.evaluation.flops import flops_per_token
    from mcsmoe.evaluation.quality import quality
    from mcsmoe.evaluation.size import size
    from mcsmoe.tasks.task import TASKS

    task = TASKS[params.task.name]
    examples = task.examples(params.task, "test")
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    scores = quality(model, tokenizer, task, params.task, examples, params.evaluate.batch_size, SEED)
    sample = task.encode(tokenizer, examples[:FLOPS_SAMPLE], params.task, SEED)[:FLOPS_SAMPLE]
    write_json(
        output,
        {name: round(score, 6) for name, score in scores.items()}
        | size(model, checkpoint)
        | {"flops_per_token": round(flops_per_token(model, sample, tokenizer.pad_token_id))},
    )
    print(f"{checkpoint}: {task.metric} {scores[task.metric]:.4f}")


if __name__ == "__main__":
    run(main)
