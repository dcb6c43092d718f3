"""The command `mcsmoe`: make a model small, and look at models and plans.

    mcsmoe shrink MODEL          merge its experts into a smaller model, and measure what that costs
    mcsmoe evaluate MODEL        how well a model predicts text
    mcsmoe inspect MODEL         what a model is, and what merging its experts would give and cost
    mcsmoe show PLAN             what a plan makes of the experts of each layer
    mcsmoe diff PLAN PLAN        in what two plans differ

With --json a command prints one JSON object and nothing else.
"""

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

import mcsmoe.command
from mcsmoe.command import interruptible
from mcsmoe.errors import UserError
from mcsmoe.interrupt import idle

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich takes longer than all else of --help
    help="Make a sparse mixture-of-experts model small by merging its experts.",
)

MIX = (
    "a mix from the hub: evol-codealpaca-v1 (code), ultrachat_200k (chat), fineweb-edu (prose), open-web-math "
    "(mathematics) and wikipedia in seven languages"
)


class Form(Enum):
    """The form of the result."""

    STOCK = "stock"
    MAPPED = "mapped"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
PlanPath = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json, or the directory that holds one.")]


def main() -> None:
    """Run the command. Mistakes print one line and exit with code 2."""
    idle()
    mcsmoe.command.run(app)


Text = Annotated[
    str | None,
    typer.Option(metavar="DIR|FILE|HUB_ID", help=f"Text to compare experts on and to measure on; without it {MIX}."),
]
MemoryLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Memory to use, such as 24GB; without it what is free.")
]


@app.command()
@interruptible
def shrink(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory of a checkpoint, or a hub id.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Directory to write; it must not exist.")],
    experts: Annotated[int | None, typer.Option(min=1, metavar="K", help="Experts to keep in a layer.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Instead of --experts: size of the result, such as 50% of the bytes, or 24GB.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Method: see docs/methods.md.")] = "pruning-soft-count",
    text: Text = None,
    samples: Annotated[int, typer.Option(min=1, help="Rows of text to compare experts on.")] = 128,
    memory_limit: MemoryLimit = None,
    form: Annotated[
        Form,
        typer.Option("--format", help="stock: any engine loads it. mapped: exactly the merged model, with its code."),
    ] = Form.STOCK,
    keep_mtp: Annotated[
        bool, typer.Option("--keep-mtp", help="Carry layers for multi-token prediction (a draft head) over unchanged.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the tokenizer run the Python code beside it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Merge the experts of MODEL into fewer, write the smaller model, and measure what it costs.

    Says first what it will do and what that takes, and asks. When it was interrupted, run it again: it goes on.
    """
    from mcsmoe import warm
    from mcsmoe.command import early, prepare

    warm.start(os.environ | early())
    from mcsmoe.api import shrink as shrink_model
    from mcsmoe.report.plain import facts
    from mcsmoe.shrinking.job import Job

    def confirm(job: Job) -> None:
        print(*facts(job.lines()), sep="\n", file=sys.stderr)
        if not yes:
            _ask()

    prepare(seed=0)
    outcome = shrink_model(
        model,
        output,
        experts=experts,
        size=size,
        recipe=recipe,
        text=text,
        samples=samples,
        memory_limit=memory_limit,
        format=form.value,
        keep_mtp=keep_mtp,
        trust_remote_code=trust_remote_code,
        confirm=confirm,
    )
    _tell(outcome, outcome.to_json(), as_json)


def _ask() -> None:
    """Ask whether to start. Raises `UserError` if nobody can answer."""
    if not sys.stdin.isatty():
        raise UserError("nobody can be asked here whether to start: add --yes")
    if not typer.confirm("Start?", default=True, err=True):
        raise typer.Exit(0)


@app.command()
@interruptible
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory of a checkpoint, or a hub id.")],
    text: Text = None,
    samples: Annotated[int, typer.Option(min=1, help="As given to shrink, to measure on the same rows.")] = 128,
    memory_limit: MemoryLimit = None,
    as_json: Json = False,
) -> None:
    """Measure how well MODEL, stock or merged, predicts the rows of text that shrink would hold out."""
    from mcsmoe.api import open as open_model
    from mcsmoe.arguments import best_device, memory_size
    from mcsmoe.command import prepare
    from mcsmoe.evaluation.measure import rows_likelihood
    from mcsmoe.shrinking.machine import working_memory_limit
    from mcsmoe.shrinking.rows import rows_for

    prepare(seed=0)
    limit = working_memory_limit(memory_size(memory_limit), best_device())
    opened = open_model(model, memory_limit=limit)
    found = rows_likelihood(opened, rows_for(opened.config, opened.tokenizer, text, samples).held_out)
    _tell(found, found.to_json(), as_json)


@app.command()
@interruptible
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory of a checkpoint, or a hub id.")],
    as_json: Json = False,
) -> None:
    """Tell what MODEL is, what can be made of it, and how many bytes, disk and memory that takes.

    Reads config.json and the index of the weights; of a hub id it fetches just these two.
    """
    from mcsmoe.arguments import BATCH, SAMPLES
    from mcsmoe.checkpoint.source import fetch
    from mcsmoe.command import quiet
    from mcsmoe.shrinking.rows import LENGTH
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
