"""Measure one checkpoint: the task's metrics, and what the model costs to store and run.

python -m stages.evaluate --checkpoint DIR --output FILE          the task of params.yaml, as dvc calls it
python -m stages.evaluate --checkpoint google-t5/t5-base --task squad      any model, any task; no params.yaml is read

A model that does not fit into the memory limit is read block by block, if the task does not generate text.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from mcsmoe.command import prepare
from mcsmoe.errors import ParameterError, UserError
from mcsmoe.fields import find_directory
from stages.common import check_outputs, run, start


def main(
    checkpoint: Annotated[str, Option(help="Directory of the checkpoint; with --task also a hub id.")],
    output: Annotated[Path | None, Option(help="JSON file for the figures; without it they are printed.")] = None,
    task: Annotated[str | None, Option(help="Task to measure instead of the one in params.yaml.")] = None,
    data: Annotated[str | None, Option(help="Directory or hub id of its data; without it the task's own.")] = None,
    subset: Annotated[str | None, Option(help="Configuration of a hub data set; without it the task's own.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Measure the first examples only.")] = None,
    batch_size: Annotated[int | None, Option(min=1, help="Examples at a time; 32 by default.")] = None,
    memory_limit: Annotated[
        str | None, Option(help="Memory to use, such as 24GB; without it there is no limit.")
    ] = None,
) -> None:
    """Measure quality, parameters, bytes, experts and FLOPs per token of CHECKPOINT; write them to OUTPUT."""
    directory, written = find_directory(checkpoint), [output] if output else []
    source: Path | str = directory
    if task is None:
        if {data, subset, limit, batch_size, memory_limit} != {None}:
            options = "--data, --subset, --limit, --batch-size and --memory-limit"
            raise UserError(f"{options} go with --task; else params.yaml says it")
        params = start(files=written)
        settings, batch_size, limit = params.task, params.evaluate.batch_size, params.evaluate.limit
        allowed, trusted = params.memory_limit, params.model.trust_remote_code
    else:
        allowed, trusted = parsed(memory_limit), False
        settings, batch_size = standalone(task, data, subset), batch_size or 32
        prepare(seed=0)
        check_outputs(written)
        source = directory if directory.is_dir() else checkpoint
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.evaluation.measure import measure
    from mcsmoe.tasks.task import TASKS

    figures = measure(source, settings, batch_size, limit, allowed, trust_remote_code=trusted)
    if output is None:
        print(json.dumps(figures, indent=2))
    else:
        write_json(output, figures)
        metric = TASKS[settings.name].metric
        print(f"{checkpoint}: {metric} {figures[metric]:.4f}")


def parsed(memory_limit: str | None) -> int | None:
    """Bytes of a size such as 24GB or 24000000000. Raises `ParameterError` for anything else."""
    from mcsmoe.fields import size_in_bytes

    try:
        size: int | None = size_in_bytes(memory_limit)
    except ValueError:
        allowed = "a size such as 16GB or 512MiB, or a number of bytes"
        raise ParameterError("--memory-limit", memory_limit, allowed) from None
    return size


def standalone(name: str, data: str | None, subset: str | None) -> Any:
    """Settings of a task without a params file, with the task's own lengths; `data` is a directory or a hub id."""
    from mcsmoe.fields import HUB_ID
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
