"""Check a whole params file against its model and data, and resolve its recipes, before any work starts.

python -m stages.check      as dvc calls it; its outputs change only if a recipe or a plugin changes
"""

import importlib.util
import shutil
from collections.abc import Sequence
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcsmoe.errors import ParameterError, UserError
from mcsmoe.params import ModelSection, Params, TaskSection
from stages.common import CHECKED, FIGURES, RECIPES, explained, run, start

if TYPE_CHECKING:
    from mcsmoe.calibration.sample import Sampling
    from mcsmoe.families import MoELayer
    from mcsmoe.tasks.task import Task

PASSAGES = 100
"""Passages of a split that are looked at first for one that makes a block."""


def main() -> None:
    """Refuse what a later stage would refuse: unknown names, impossible budgets, missing model or data.

    Write artifacts/checked.json, which is the same for all valid params, and artifacts/recipes. Print a line for each
    recipe whose result no stock checkpoint can hold.
    """
    params = start(files=[CHECKED], directories=[RECIPES])
    from mcsmoe.checkpoint.output import atomic_directory, write_json
    from mcsmoe.exporting.stock import recipe_obstacle
    from mcsmoe.methods.resolved import ResolvedMethod, code_of
    from mcsmoe.report.gathered import leftovers
    from mcsmoe.tasks.task import TASKS

    for plugin in params.plugins:
        check_place(plugin)
    layers = check(params)
    methods = [ResolvedMethod.of(name, params) for name in params.methods.merge]
    with atomic_directory(RECIPES) as directory:
        for method in methods:
            method.save(directory / f"{method.method}.yaml")
    for method in methods:
        reason = recipe_obstacle(method.recipe, method.merge, layers)
        if reason:
            print(f"{method.method}: no stock checkpoint can be exported: {explained(UserError(reason))}")
    # The report depends on that directory as a whole: figures of a method that was taken out would count.
    for path in leftovers(FIGURES, params.methods):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(CHECKED, {"task": code_of(params.plugins, [(TASKS, params.task.name)])})


def check_place(plugin: str) -> None:
    """Refuse a plugin inside the project but outside recipes/, where dvc would miss its changes.

    Installed packages are allowed: they are part of the environment. Raises `ParameterError`.
    """
    spec = importlib.util.find_spec(plugin)
    origin = Path(spec.origin).resolve() if spec and spec.origin else None
    here = Path.cwd().resolve()
    if origin and origin.is_relative_to(here) and not origin.is_relative_to(here / "recipes"):
        if "site-packages" in origin.parts:
            return
        where = origin.relative_to(here)
        raise ParameterError("plugins", plugin, f"dvc does not look at {where}: move it to recipes/, as recipes.NAME")


def check(params: Params) -> Sequence["MoELayer"]:
    """Check all sections against each other, the model and the data; return the sparse layers of the model.

    Raises a `UserError` for the first mistake.
    """
    from mcsmoe.calibration.memory import check_training, must_stream, must_stream_scoring
    from mcsmoe.calibration.sample import Sampling
    from mcsmoe.compression.pruner import CubicSchedule
    from mcsmoe.compression.size import check_size
    from mcsmoe.errors import CheckpointError
    from mcsmoe.families import excluded_layers, positions, sparse_layers
    from mcsmoe.methods.recipe import validate_recipes
    from mcsmoe.tasks.task import TASKS
    from mcsmoe.training.start import check_companions, check_dense, check_model

    task = TASKS[params.task.name]
    config = check_model(params.model)
    layers = sparse_layers(config)
    if not layers:
        raise CheckpointError(f"the model to start from is dense: {config.model_type} has no experts to merge")
    check_companions(params.model)
    check_length(params.task, task, positions(config))
    validate_recipes(params, layers)
    # Full fine-tuning needs the most memory of all trainings, and collect of all passes over the sample.
    if params.finetune.epochs:
        check_values(params.model)
        check_training(params.memory_limit, "finetune", config, keeps_best=True, shares=params.launch.shares)
    sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
    must_stream(params.memory_limit, "collect", config, sampling, params.collect.also)
    # No later model is larger than the full one.
    longest = params.task.max_source_length + params.task.max_target_length
    must_stream_scoring(params.memory_limit, "evaluate", config, params.evaluate.batch_size, longest, task.generates)
    excluded = excluded_layers(params.merge.exclude, layers)
    if params.methods.dense:
        check_dense(params.model, config)
    if params.methods.compress:
        weights = {
            f"{layer.name}.{name}": (1, shape[0], shape[1])
            for layer in layers
            if layer.name not in excluded
            for name, shape in layer.shapes().items()
            if layer.layout[name].is_weight
        }
        check_size(weights, params.compress, value_bytes(config))
    CubicSchedule.of(params.compress, steps=1)
    check_data(params, task, sampling)
    return layers


def check_data(params: Params, task: "Task", sampling: "Sampling") -> None:
    """Refuse data that a later stage would refuse: every row is read, and text is cut into blocks where it has to be.

    Raises `DataError` for rows that are no text or make no block, `ParameterError` for a number that does not fit them.
    """
    from mcsmoe.errors import DataError
    from mcsmoe.tasks.reading import hold_out
    from mcsmoe.training.start import start_tokenizer

    train, test = (task.examples(params.task, split) for split in ("train", "test"))
    parts = [train]
    if params.finetune.epochs or params.methods.distill:
        parts = list(hold_out(train, params.task.selection, params.seed))
    if task.generates or task.chooses:
        return  # each example makes a row
    tokenizer = start_tokenizer(params.model, parts[0])
    sampling.draw(tokenizer)
    for part in (*parts, test[: params.evaluate.limit]):
        try:  # a few long passages are enough to make a block
            task.encode(
                tokenizer, nlargest(PASSAGES, part, key=lambda each: len(each.source)), params.task, params.seed
            )
        except DataError:
            task.encode(tokenizer, part, params.task, params.seed)


def check_values(settings: ModelSection) -> None:
    """Raise `CheckpointError`, naming the tensor, for NaN, infinity or absurd values, from which no training recovers.

    Reads all weights of a local checkpoint in safetensors. A model that is not trained is read by finetune itself.
    """
    from mcsmoe.progress import progress
    from mcsmoe.training.start import source_tensors

    source = source_tensors(settings) if isinstance(settings.origin, Path) else None
    if source is not None:
        for name in progress(source.names(), "check weights", late=True):
            source.tensor(name)


def check_length(settings: TaskSection, task: "Task", most: int) -> None:
    """Raise `ParameterError` if a row can have more tokens than `most`, which the model takes."""
    source, target = settings.max_source_length, settings.max_target_length
    answers = task.generates or task.chooses  # running text is cut into blocks of `max_source_length`
    if source + (target if answers else 0) > most:
        what = f"and `max_target_length` = {target} are too long together" if answers else "is too long"
        raise ParameterError("max_source_length", source, f"{what}: the model takes at most {most} tokens")


def value_bytes(config: Any) -> int:
    """Bytes of one weight in the dtype of the checkpoint, float32 if its configuration names none."""
    import torch

    dtype = config.dtype or torch.float32
    size: int = dtype.itemsize
    return size


if __name__ == "__main__":
    run(main)
