"""Turn a merged checkpoint into a stock one, which any engine loads; run by hand, not a step of the pipeline."""

import shlex
from pathlib import Path
from typing import Annotated

from typer import Option

from mcsmoe.fields import find_directory
from stages.common import run, start

SOURCE = Path("artifacts/permute")


def main(
    checkpoint: Annotated[Path, Option(help="Merged, perhaps distilled, model with equally many experts a layer.")],
    output: Annotated[Path, Option(help="Directory to write; an older export in it is replaced.")],
    source: Annotated[Path, Option(help="Stock model that was merged.")] = SOURCE,
    plan: Annotated[Path | None, Option(help="Directory with plan.json, if it is not CHECKPOINT.")] = None,
    router: Annotated[str, Option(help="dominant, ridge or cross-entropy: where router rows come from.")] = "dominant",
) -> None:
    """Write CHECKPOINT with K router rows instead of the index map, with the names and the layout of SOURCE.

    After an interruption the next run resumes at the same layer, if the weights are large enough for shards.
    """
    params = start(checkpoints=[output])
    from mcsmoe.calibration.observer import Observer
    from mcsmoe.calibration.sample import Sampling
    from mcsmoe.checkpoint.content import code_hash
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.errors import CheckpointError, PlanError
    from mcsmoe.exporting.pipeline_card import pipeline_card
    from mcsmoe.exporting.stock import open_mapped
    from mcsmoe.exporting.write import Agreement, export_model
    from mcsmoe.grouping.plan import Plan
    from mcsmoe.model import Model

    checkpoint, planned = find_directory(checkpoint), find_directory(plan or checkpoint)
    model = Model(
        find_directory(source),
        params.memory_limit,
        trust_remote_code=params.model.trust_remote_code,
        keep_mtp=params.model.keep_mtp,
    )
    try:
        mapped = open_mapped(model.checkpoint, Checkpoint(checkpoint), planned)
    except PlanError as error:
        raise CheckpointError(f"{error}; say --plan artifacts/merge/METHOD, where merge wrote it") from None
    sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
    observer = Observer(model, sampling, "export", tokens=True)

    def card(agreement: Agreement | None) -> str:
        command = ["python", "-m", "stages.evaluate", "--checkpoint", str(output), "--output", "stock.json"]
        chosen = Plan.load(planned)
        return pipeline_card(params, mapped, chosen, output, router, agreement, shlex.join(command)).markdown()

    key = {"plugins": code_hash(params.plugins)}
    agreement = export_model(model, mapped, output, router, card, observer=observer, key=key)
    for name, share in (agreement or {}).items():
        print(
            f"{name}: {share:.2%} of the gates go to the same experts as by all {mapped.layers[0].experts} router rows"
        )
    print(f"{output}: {mapped.kept} experts a layer, {Checkpoint(output).size_bytes:,} bytes")


if __name__ == "__main__":
    run(main)
