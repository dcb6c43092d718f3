"""Measure the stable rank of the experts before merging, after it, and after distillation."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import FIGURES, run, start


def main(method: Annotated[str, Option(help="Recipe whose experts are measured.")]) -> None:
    """Write artifacts/figures/stable-rank/METHOD.json: a row a moment and layer."""
    start()
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.evaluation.stable_rank import merged_ranks, stock_ranks
    from mcsmoe.families import family_of

    def ranks(directory: Path) -> dict[str, float]:
        checkpoint = Checkpoint(directory)
        family = family_of(checkpoint.config)
        return merged_ranks(checkpoint, family, family.layers(checkpoint.config))

    full = Checkpoint(Path("artifacts/permute"))
    moments = {
        "before": stock_ranks(full, family_of(full.config).layers(full.config)),
        "merged": ranks(Path("artifacts/merge") / method),
        "distilled": ranks(Path("artifacts/distill") / method),
    }
    rows = [
        {"moment": moment, "layer": layer, "stable_rank": round(rank, 3)}
        for moment, layers in moments.items()
        for layer, rank in layers.items()
    ]
    write_json(FIGURES / f"stable-rank/{method}.json", rows)


if __name__ == "__main__":
    run(main)
