"""What all stages share: read params and plugins, and say of a user's mistake where it stands in the params file."""

import importlib
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import mcsmoe.command
from mcsmoe.command import interruptible, prepare
from mcsmoe.errors import SHOWN, CheckpointError, ParameterError, PlanError, StatisticsError, UserError
from stages import handover

if TYPE_CHECKING:
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
    "model": ("config", "dense_source", "trust_remote_code"),
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
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
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


def start(
    *, files: Iterable[Path] = (), directories: Iterable[Path] = (), checkpoints: Iterable[Path] = ()
) -> "Params":
    """Read and check the whole params file, import torch with its threads and seed, and import its plugins.

    Every stage checks the whole file, so a mistake in a late section shows before the first training. `files`,
    `directories` and `checkpoints`, which a fresh process verifies, are what the stage writes. Raises `ParameterError`
    or another `UserError` for the first mistake, and `FileError` for an output that cannot be written.
    """
    global _params_file
    from mcsmoe.params import Params

    params, _params_file = Params.load(PARAMS), PARAMS
    written = list(checkpoints)
    handover.start(params.threads, verifying=bool(written))
    prepare(params.seed, params.threads)
    check_outputs(files, [*directories, *written])
    for module in params.plugins:
        import_plugin(module)
    return params


def check_outputs(files: Iterable[Path] = (), directories: Iterable[Path] = ()) -> None:
    """Raise `FileError` for the first output that cannot be written."""
    from mcsmoe.checkpoint.output import check_output

    for file in files:
        check_output(file)
    for directory in directories:
        check_output(directory, directory=True)


def made(path: Path) -> Path:
    """The input `path` of a stage, such as artifacts/merge/METHOD. Raises `CheckpointError` if it was not made yet."""
    if not path.is_dir():
        raise CheckpointError(f"there is no {path}: run {path.parts[1]} first")
    return path


def import_plugin(name: str) -> None:
    """Import a plugin; what it raises becomes a `ParameterError` that names its file and line."""
    try:
        importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also `sys.exit` at the end of a script
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            reason = "there is no such module; it is looked up as in `import`"
        else:
            reason = f"it cannot be imported: {type(error).__name__}: {str(error)[:SHOWN]} ({_origin(error)})"
        raise ParameterError("plugins", name, reason) from error


def _origin(error: BaseException) -> str:
    """File and line of the outermost code, outside Python's own import, that an error passed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)[1:]]
    file, line = next(
        place for place in [*places, ("?", 0)] if not place[0].startswith(("<frozen", importlib.__file__))
    )
    return f"{file}, line {line}"
