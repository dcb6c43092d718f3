"""Group and merge experts, and write the merged checkpoint with its plan."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import FIGURES, RECIPES, made, run, start

SOURCE = Path("artifacts/permute")
STATISTICS = Path("artifacts/collect")
OUTPUT = Path("artifacts/merge")


def main(method: Annotated[str, Option(help="Recipe to apply.")]) -> None:
    """Merge artifacts/permute with the statistics in artifacts/collect; write artifacts/merge/METHOD.

    After an interruption the next run resumes at the same layer, if the weights are large enough for shards.
    """
    params = start(checkpoints=[OUTPUT / method], directories=[FIGURES / "plans" / method])
    from mcsmoe.calibration.observer import Observer
    from mcsmoe.calibration.sample import Sampling
    from mcsmoe.calibration.statistics import RoutingStatistics
    from mcsmoe.checkpoint.content import Content, code_hash
    from mcsmoe.checkpoint.output import atomic_directory
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.merging.apply import merge_model
    from mcsmoe.methods.planning import make_plan
    from mcsmoe.methods.resolved import ResolvedMethod
    from mcsmoe.model import Model

    resolved = ResolvedMethod.load(RECIPES / f"{method}.yaml")
    recipe = resolved.recipe
    model = Model(made(SOURCE), params.memory_limit, trust_remote_code=params.model.trust_remote_code)
    sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
    observer = Observer(model, sampling, "merge", tokens=True) if recipe.looks else None
    statistics = RoutingStatistics.load(STATISTICS)
    plan = make_plan(method, recipe, resolved.merge, statistics, model, params.seed)
    key = {"statistics": Content(STATISTICS), "plugins": code_hash(params.plugins)}
    merge_model(model, plan, statistics, OUTPUT / method, observer=observer, seed=params.seed, key=key)
    with atomic_directory(FIGURES / "plans" / method) as directory:
        plan.save(directory)
    kept, all_experts = sum(plan.experts.values()), sum(layer.experts for layer in model.layers)
    print(f"{method}: {all_experts} experts → {kept}, {Checkpoint(OUTPUT / method).size_bytes:,} bytes")


if __name__ == "__main__":
    run(main)
