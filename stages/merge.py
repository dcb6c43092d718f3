"""Decide which experts become one, and write the merged checkpoint with its plan."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start

SOURCE = Path("artifacts/permute")
STATISTICS = Path("artifacts/collect")
OUTPUT = Path("artifacts/merge")


def main(method: Annotated[str, Option(help="Recipe to apply.")]) -> None:
    """Merge artifacts/permute by the statistics of artifacts/collect; write artifacts/merge/METHOD."""
    params = start()
    from mcsmoe.architectures.registry import family_of
    from mcsmoe.checkpoint.atomic import atomic_directory
    from mcsmoe.checkpoint.probe import probe_batch
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.checkpoint.verify import verify_checkpoint
    from mcsmoe.merging.write import write_merged
    from mcsmoe.recipes.load import load_recipe, validate_recipes
    from mcsmoe.recipes.plan import make_plan
    from mcsmoe.routing.statistics import RoutingStatistics

    recipe = load_recipe(method, params)
    source = Checkpoint(SOURCE)
    layers = family_of(source.config).layers(source.config)
    validate_recipes(params, layers)
    plan = make_plan(method, recipe, params.merge, RoutingStatistics.load(STATISTICS), layers)
    with atomic_directory(OUTPUT / method) as directory:
        write_merged(source, plan, directory)
        verify_checkpoint(directory, probe_batch(source.config["vocab_size"]), None)
    kept, all_experts = sum(plan.experts.values()), sum(layer.experts for layer in layers)
    print(f"{method}: {all_experts} experts → {kept}, {Checkpoint(OUTPUT / method).size_bytes:,} bytes")


if __name__ == "__main__":
    run(main)
