"""Decide which experts become one, and write the merged checkpoint with its plan."""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from stages.common import FIGURES, RECIPES, run, start

SOURCE = Path("artifacts/permute")
STATISTICS = Path("artifacts/collect")
OUTPUT = Path("artifacts/merge")


def main(method: Annotated[str, Option(help="Recipe to apply.")]) -> None:
    """Merge artifacts/permute by the statistics of artifacts/collect; write artifacts/merge/METHOD.

    Interrupted, it goes on with the layer where it stopped, if weights are large enough for shards.
    """
    params = start()
    from mcsmoe.alignment.activations import LazyTokens
    from mcsmoe.calibration.gradients import Gradients
    from mcsmoe.calibration.memory import must_stream
    from mcsmoe.calibration.sample import draw_calibration
    from mcsmoe.calibration.statistics import RoutingStatistics
    from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
    from mcsmoe.checkpoint.output import atomic_directory
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.checkpoint.resume import identity, resumable_directory, source_code
    from mcsmoe.checkpoint.streamed import load_streamed
    from mcsmoe.checkpoint.verify import probe_batch, verify_checkpoint
    from mcsmoe.families import family_of
    from mcsmoe.merging.apply import Material, write_merged
    from mcsmoe.recipes.planning import make_plan
    from mcsmoe.recipes.resolved import ResolvedMethod

    def calibration() -> tuple[Any, list[Any]]:
        tokenizer, settings = load_tokenizer(SOURCE), params.calibration
        sample = draw_calibration(params.task, tokenizer, settings.samples, params.seed)
        model = load_streamed(SOURCE) if streamed else load_model(SOURCE)
        return model, sample.batches(tokenizer.pad_token_id, settings.batch_size, causal=family.causal)

    resolved = ResolvedMethod.load(RECIPES / f"{method}.yaml")
    recipe = resolved.recipe
    limit = params.memory_limit
    streamed = must_stream(limit, "merge", load_config(SOURCE), params.task, params.calibration, tokens=recipe.looks)
    source = Checkpoint(SOURCE)
    family = family_of(source.config)
    layers = family.layers(source.config)
    statistics, gradients = RoutingStatistics.load(STATISTICS), Gradients(STATISTICS)
    plan = make_plan(method, recipe, resolved.merge, statistics, layers, source, gradients, params.seed)
    material = Material(statistics, gradients, LazyTokens(family, calibration), params.seed)
    key = {
        "source": identity(SOURCE),
        "statistics": identity(STATISTICS),
        "plan": plan.to_json(),
        "params": params.model_dump(mode="json", include={"seed", "task", "calibration"}),
        "code": source_code(params.plugins),
    }
    with resumable_directory(OUTPUT / method, key) as staging:
        written = write_merged(source, plan, material, *staging)
        del material  # and with it a model
        probe = probe_batch(source.config["vocab_size"], family.causal)
        verify_checkpoint(staging.output, written, probe, None, limit)
    with atomic_directory(FIGURES / "plans" / method) as directory:
        plan.save(directory)
    kept, all_experts = sum(plan.experts.values()), sum(layer.experts for layer in layers)
    print(f"{method}: {all_experts} experts → {kept}, {Checkpoint(OUTPUT / method).size_bytes:,} bytes")


if __name__ == "__main__":
    run(main)
