"""The model card of a checkpoint that was exported by hand from the pipeline's artifacts."""

from pathlib import Path

from mcsmoe.checkpoint.companions import own_code
from mcsmoe.checkpoint.reader import Checkpoint
from mcsmoe.exporting.card import Card, Figure, Measured, Origin, code
from mcsmoe.exporting.stock import Mapped
from mcsmoe.exporting.write import Agreement
from mcsmoe.grouping.plan import Plan
from mcsmoe.methods.recipe import Recipe, known_recipes, load_recipe
from mcsmoe.params import Params
from mcsmoe.report.gathered import Scores, read_measurements
from mcsmoe.report.table import COSTS, Metric, Result
from mcsmoe.tasks.score import BOUNDS
from mcsmoe.tasks.task import TASKS

METRICS = Path("artifacts/figures/scores")


def pipeline_card(
    params: Params, mapped: Mapped, plan: Plan, output: Path, router: str, agreement: Agreement | None, command: str
) -> Card:
    """The card of the stock checkpoint `output`, which was made of `mapped` and its `plan` under these params.

    `command` is what measures it.
    """
    task = TASKS[params.task.name]
    measured = measurements(mapped.checkpoint, Metric(task.metric, task.higher_is_better))
    on = f"the test split of {code(params.task.name)}"
    return Card(
        family=mapped.family,
        model_type=mapped.source.config["model_type"],
        experts=mapped.layers[0].experts,
        kept=[mapped.kept],
        path=str(output),
        remote_code=bool(own_code(mapped.source.config)),
        origin=_origin(params),
        calibration=f"{params.calibration.samples} rows of {_data(params)}",
        plan=plan,
        recipe=_recipe(plan, params),
        groups=mapped.groups,
        router=router,
        agreement=agreement,
        measured=Measured(measured, on, itself=False) if measured else None,
        command=command,
    )


def measurements(checkpoint: Checkpoint, metric: Metric) -> list[Figure]:
    """Measurements of a checkpoint in artifacts/STEP/METHOD beside those of the full model; [] if there are none.

    Measurements of another state of the checkpoint, recognised by its size in bytes, or of another task are ignored.
    """
    step, method = checkpoint.directory.resolve().parts[-2:]
    files = [METRICS / "full.json", METRICS / f"{step}-{method}.json"]
    if not all(file.is_file() for file in files):
        return []
    full, merged = (read_measurements(file, Scores, "evaluate") for file in files)
    if full.keys() != merged.keys() or merged.get("bytes") != checkpoint.size_bytes:
        return []
    return [Figure(name, full[name], merged[name], _worse(name, full, merged, metric)) for name in full]


def _worse(name: str, full: dict[str, float], merged: dict[str, float], metric: Metric) -> bool:
    if name in COSTS:
        return merged[name] > full[name]
    # Only the metric and its breakdown say which direction is worse; other numbers do not.
    if not name.startswith(metric.name) or name.endswith(BOUNDS):
        return False
    each = Metric(name, metric.higher_is_better)
    return each.better(Result("full", "–", full), Result("merged", "–", merged))


def _data(params: Params) -> str:
    """The task, and where its data is from, as code."""
    data = params.task.data or params.task.hub
    return f"{code(params.task.name)}{f' ({code(data)})' if data else ''}"


def _origin(params: Params) -> Origin:
    model = params.model
    training = f"{'fine-tuned' if model.origin else 'trained'} on {_data(params)}"
    name = None if model.origin is None else str(model.source or model.hub)
    return Origin(name, model.hub, model.revision, training if params.finetune.epochs else None)


def _recipe(plan: Plan, params: Params) -> Recipe | None:
    """The recipe of the plan's method, or None if its rule or alignment is no longer that of the plan."""
    if plan.method not in known_recipes():
        return None
    recipe = load_recipe(plan.method, params.recipes)
    return recipe if (recipe.rule, recipe.alignment) == (plan.rule, plan.alignment) else None
