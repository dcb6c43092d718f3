"""The command `mcsmoe`: look at models and plans.

    mcsmoe inspect MODEL         what a model is, and what merging its experts would give and cost
    mcsmoe show PLAN             what a plan makes of the experts of each layer
    mcsmoe diff PLAN PLAN        in what two plans differ

With --json a command prints one JSON object and nothing else.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import mcsmoe.command
from mcsmoe.command import interruptible
from mcsmoe.interrupt import idle

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a sparse mixture-of-experts model small by merging its experts.",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json, or the directory that holds one.")]


def main() -> None:
    """Run the command. Mistakes print one line and exit with code 2."""
    idle()
    mcsmoe.command.run(app)


@app.command()
@interruptible
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory of a checkpoint, or a hub id.")],
    as_json: Json = False,
) -> None:
    """Tell what MODEL is, what can be made of it, and how many bytes, disk and memory that takes.

    Reads config.json and the index of the weights; of a hub id it fetches just these two.
    """
    from mcsmoe.api import BATCH, LENGTH, SAMPLES
    from mcsmoe.checkpoint.load import fetch
    from mcsmoe.command import quiet
    from mcsmoe.sizing import inspection

    quiet()
    directory = fetch(model, patterns=inspection.FILES)
    found = inspection.inspect(directory, SAMPLES, LENGTH, BATCH, name=model)
    _tell(found, found.to_json(), as_json)


@app.command()
@interruptible
def show(
    plan: PlanPath,
    layer: Annotated[str | None, typer.Option(help="Show the groups of this layer, such as decoder.0.")] = None,
    as_json: Json = False,
) -> None:
    """Show PLAN: how many experts each layer keeps, how large its groups are, and how much is merged."""
    from mcsmoe.grouping.plan import Plan
    from mcsmoe.report.plans import layer_outline, outline, shown, shown_layer

    found = Plan.load(plan)
    if layer is None:
        _tell(shown(found), outline(found), as_json)
    else:
        _tell(shown_layer(found, layer), layer_outline(found, layer), as_json)


@app.command()
@interruptible
def diff(first: PlanPath, second: PlanPath, as_json: Json = False) -> None:
    """Tell in what two plans of one model differ: settings, groups and dominant experts, layer by layer."""
    from mcsmoe.grouping.plan import Plan
    from mcsmoe.report.plans import Difference

    found = Difference.of(Plan.load(first), Plan.load(second))
    _tell(found, found.to_json(), as_json)


def _tell(text: object, values: dict[str, Any], as_json: bool) -> None:
    print(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) if as_json else text)


if __name__ == "__main__":
    main()
