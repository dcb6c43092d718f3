"""Turn a merged checkpoint into a stock one, which any engine loads; by hand, no step of the pipeline."""

from pathlib import Path
from typing import Annotated

from typer import Option

from stages.common import run, start

SOURCE = Path("artifacts/permute")
REPORT = "export.json"


def main(
    checkpoint: Annotated[Path, Option(help="Merged, perhaps distilled, model with equally many experts a layer.")],
    output: Annotated[Path, Option(help="Directory to write; an older export in it is replaced.")],
    source: Annotated[Path, Option(help="Stock model that was merged.")] = SOURCE,
    plan: Annotated[Path | None, Option(help="Directory with plan.json, if it is not CHECKPOINT.")] = None,
    router: Annotated[str, Option(help="dominant, ridge or cross-entropy: where router rows come from.")] = "dominant",
) -> None:
    """Write CHECKPOINT with K router rows instead of the index map, in the names and the layout of SOURCE.

    Interrupted, it goes on with the layer where it stopped, if weights are large enough for shards.
    """
    params = start()
    from mcsmoe.calibration.memory import must_stream
    from mcsmoe.calibration.sample import draw_calibration
    from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.checkpoint.resume import identity, resumable_directory, source_code, tensor_hash
    from mcsmoe.checkpoint.streamed import load_streamed
    from mcsmoe.checkpoint.verify import probe_batch, verify_stock
    from mcsmoe.errors import CheckpointError, PlanError
    from mcsmoe.export.card import CARD, model_card
    from mcsmoe.export.routers import ROWS, stock_routers
    from mcsmoe.export.stock import check_stock, open_mapped, write_stock
    from mcsmoe.grouping.plan import Plan

    rule, origin, merged = ROWS[router], Checkpoint(source), Checkpoint(checkpoint)
    if output.exists() and not (output / REPORT).is_file():
        raise CheckpointError(f"{output}: exists and is no earlier export; give another --output")
    try:
        mapped = open_mapped(origin, merged, plan or checkpoint)
    except PlanError as error:
        raise CheckpointError(f"{error}; say --plan artifacts/merge/METHOD, where merge wrote it") from None
    check_stock(mapped)
    tokenizer, causal = load_tokenizer(source), mapped.family.causal
    sample = draw_calibration(params.task, tokenizer, params.calibration.samples, params.seed)
    batches = sample.batches(tokenizer.pad_token_id, params.calibration.batch_size, causal=causal)
    limit = params.memory_limit
    streamed = must_stream(limit, "export", load_config(source), params.task, params.calibration, tokens=True)
    model = load_streamed(source) if streamed else load_model(source)
    routers, agreement = stock_routers(mapped, rule, model, batches)
    del model
    key = {
        "source": identity(source),
        "checkpoint": identity(checkpoint),
        "routers": tensor_hash(routers),
        "code": source_code(params.plugins),
    }
    with resumable_directory(output, key) as staging:
        written = write_stock(mapped, routers, *staging)
        verify_stock(staging.output, written, probe_batch(origin.config["vocab_size"], causal), limit)
        write_json(staging.output / REPORT, {"router": router, "experts": mapped.kept, "agreement": agreement})
        card = model_card(params, mapped, Plan.load(plan or checkpoint), output, router, agreement)
        (staging.output / CARD).write_text(card)
    for name, share in agreement.items():
        print(f"{name}: {share:.2%} of tokens go to the group that all {mapped.layers[0].experts} router rows chose")
    print(f"{output}: {mapped.kept} experts a layer, {Checkpoint(output).size_bytes:,} bytes")


if __name__ == "__main__":
    run(main)
