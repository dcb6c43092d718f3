"""What all stages share: read params and plugins, and say of a user's mistake where it stands in the params file."""

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

import mcsmoe.command
from mcsmoe.command import interruptible, prepare
from mcsmoe.errors import ParameterError, PlanError, StatisticsError, UserError
from mcsmoe.params import Params

PARAMS = Path("params.yaml")
CHECKED = Path("artifacts/checked.json")
"""Written when the params file has passed its check; holds the code of plugins that the task depends on."""
RECIPES = Path("artifacts/recipes")
"""Resolved recipes, METHOD.yaml each."""
FIGURES = Path("artifacts/figures")
"""Inputs of the report: metrics of each step and method, curves, plans. Only stages write here and dvc cleans up, so
the report never depends on leftovers."""

SECTIONS = {
    "methods": ("dense",),
    "model": ("config", "dense_source"),
    "task": ("column", "data", "hub", "max_source_length", "max_target_length", "selection"),
    "calibration": ("batch_size", "samples"),
    "collect": ("also",),
    "merge": ("budget", "capacity", "exclude", "groups"),
    "compress": ("final_ratio", "final_warmup", "initial_warmup", "rank", "rank_ratio"),
}
PLACES = {name: f"{section}.{name}" for section, names in SECTIONS.items() for name in names}
"""Argument of the library → its place in a params file: `groups` → `merge.groups`."""

REMEDIES = {StatisticsError: "run collect", PlanError: "run merge"}
"""What to run if statistics or a plan are missing."""

_params_file: Path | None = None
"""The file that `start` has read; None if there is none, and then errors must not mention one."""


def run(command: Callable[..., Any]) -> None:
    """Run `command` as a Typer app; what goes wrong is told as `mcsmoe.command` does, in words of the pipeline."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(interruptible(command))
    mcsmoe.command.run(app, explained)


def explained(error: UserError) -> str:
    """The message of a library error, with arguments named as in the params file, and the stage to run as a remedy.

    `groups = 9: 36 groups asked of ...` → `merge.groups = 9 in params.yaml: 36 groups asked of ...`
    """
    if isinstance(error, ParameterError) and error.where is None and _params_file:
        argument, *inside = error.name.split(".")
        name = ".".join([PLACES.get(argument, argument), *inside])
        return explained(ParameterError(name, error.value, error.allowed, str(_params_file)))
    text = str(error)
    if _params_file:
        text = re.sub(r"`(\w+)`", lambda named: PLACES.get(named[1], named[0]), text)
    remedies = (remedy for kind, remedy in REMEDIES.items() if isinstance(error, kind))
    return "; ".join([text, *remedies])


def start(*, files: Iterable[Path] = (), directories: Iterable[Path] = ()) -> Params:
    """Read and check the whole params file, import torch with its threads and seed, and import its plugins.

    Every stage checks the whole file, so a mistake in a late section shows before the first training. `files` and
    `directories` are what the stage writes. Raises `ParameterError` or another `UserError` for the first mistake, and
    `FileError` for an output that cannot be written.
    """
    global _params_file
    params, _params_file = Params.load(PARAMS), PARAMS
    prepare(params.seed, params.threads)
    check_outputs(files, directories)
    for module in params.plugins:
        _import_plugin(module)
    return params


def check_outputs(files: Iterable[Path] = (), directories: Iterable[Path] = ()) -> None:
    """Raise `FileError` for the first output that cannot be written."""
    from mcsmoe.checkpoint.output import check_output

    for file in files:
        check_output(file)
    for directory in directories:
        check_output(directory, directory=True)


def _import_plugin(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ParameterError("plugins", name, "there is no such module; it is looked up as in `import`") from None
