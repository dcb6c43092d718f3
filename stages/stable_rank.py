"""Measure the stable rank of the experts before merging, after it, and after distillation."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import FIGURES, made, run, start


def main(method: Annotated[str, Option(help="Recipe whose experts are measured.")]) -> None:
    """Write artifacts/figures/stable-rank/METHOD.json: one row for each layer before, merged and distilled."""
    output = FIGURES / f"stable-rank/{method}.json"
    start(files=[output])
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.evaluation.stable_rank import merged_ranks, stock_ranks
    from mcsmoe.model import Model

    full = Model(made(Path("artifacts/permute")))
    steps = {"merged": "artifacts/merge", "distilled": "artifacts/distill"}
    models = {moment: Model(made(Path(step) / method)) for moment, step in steps.items()}
    moments = {"before": stock_ranks(full.checkpoint, full.layers)}
    moments |= {name: merged_ranks(model.checkpoint, model.family, model.layers) for name, model in models.items()}
    rows = [
        {"moment": moment, "layer": layer, "stable_rank": round(rank, 3)}
        for moment, layers in moments.items()
        for layer, rank in layers.items()
    ]
    write_json(output, rows)


if __name__ == "__main__":
    run(main)
