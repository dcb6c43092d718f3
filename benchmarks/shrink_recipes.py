"""Recipes compared as `mcsmoe shrink` uses them: perplexity of the same held-out text, by experts kept.

    python -m benchmarks.shrink_recipes ../shared/models/polyglot-moe ../shared/data/polyglot --kept 24,16,8

Every recipe gets the same calibration rows and is measured on the same other rows; results are stock checkpoints, and
nothing is trained. Writes benchmarks/results/shrink_recipes.json and .md.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import mcsmoe
from mcsmoe.checkpoint.output import write_json
from mcsmoe.command import prepare
from mcsmoe.errors import UserError

RESULTS = Path(__file__).parent / "results"
RECIPES = "m-smoe,m-smoe-soft-count,m-smoe-reap,hc-smoe,pruning,pruning-soft-count"


def measure(model: str, text: str, recipe: str, kept: int, samples: int) -> dict[str, Any]:
    """Shrink the model once, and return the figures."""
    with tempfile.TemporaryDirectory() as directory:
        options: dict[str, Any] = {"experts": kept, "recipe": recipe, "text": text, "samples": samples}
        outcome = mcsmoe.shrink(model, Path(directory) / "result", **options)
    ratio = outcome.ratio
    return {
        "recipe": recipe,
        "kept": kept,
        "source": outcome.source.value,
        "result": outcome.result.value,
        "ratio": [ratio.value, ratio.low, ratio.high],
        "equal_tokens": outcome.equal_tokens,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Perplexity as a multiple of the source's, with its interval, by recipe and experts kept."""
    counts = list(dict.fromkeys(row["kept"] for row in rows))
    lines = [["recipe", *(f"{kept} experts" for kept in counts)], ["---", *["---:"] * len(counts)]]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        cells = ["{:.2f} ({:.2f}–{:.2f})".format(*row["ratio"]) for row in rows if row["recipe"] == recipe]
        lines.append([f"`{recipe}`", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(
    model: Annotated[str, typer.Argument(help="Directory of a checkpoint, or a hub id.")],
    text: Annotated[str, typer.Argument(help="Text, as for shrink.")],
    kept: Annotated[str, typer.Option(help="Experts to keep, separated by commas.")],
    recipes: Annotated[str, typer.Option(help="Recipes, separated by commas.")] = RECIPES,
    samples: Annotated[int, typer.Option(help="Calibration rows.")] = 128,
) -> None:
    """Measure all recipes and write the results."""
    prepare(seed=0)
    asked = [(recipe, int(count)) for recipe in recipes.split(",") for count in kept.split(",")]
    try:
        rows = [measure(model, text, recipe, count, samples) for recipe, count in asked]
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    write_json(RESULTS / "shrink_recipes.json", rows)
    source = f"{Path(model).name} on {Path(text).name}, perplexity {rows[0]['source']:.4g}"
    head = f"Perplexity as a multiple of the source's ({source}), with 95 % intervals; {samples} calibration rows."
    (RESULTS / "shrink_recipes.md").write_text(f"{head}\n\n{table(rows)}")
    print(table(rows))


if __name__ == "__main__":
    typer.run(main)
