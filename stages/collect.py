"""Routing statistics of the permuted model on calibration text; any number of processes gives the same."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from stages.common import run, start
from stages.launch import launched

SOURCE = Path("artifacts/permute")
OUTPUT = Path("artifacts/collect")


def main() -> None:
    """Measure on artifacts/permute what merging needs; write artifacts/collect.

    Interrupted, one process alone goes on with the layer where it stopped, if the model is read layer by layer.
    """
    params = start()
    if not launched(params, "stages.collect"):
        return
    from accelerate import Accelerator
    from torch import Tensor

    from mcsmoe.calibration.collect import collect_layers
    from mcsmoe.calibration.gradients import KINDS, write_gradients
    from mcsmoe.calibration.journal import Journal
    from mcsmoe.calibration.memory import must_stream
    from mcsmoe.calibration.sample import Calibration, draw_calibration
    from mcsmoe.calibration.statistics import StatisticsWriter
    from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
    from mcsmoe.checkpoint.resume import identity, resumable_directory, source_code
    from mcsmoe.checkpoint.streamed import load_streamed
    from mcsmoe.families import family_of
    from mcsmoe.similarity.correlation import measure_correlations
    from mcsmoe.tasks.batches import Batch

    also = params.collect.also
    streamed = must_stream(params.memory_limit, "collect", load_config(SOURCE), params.task, params.calibration, also)
    accelerator = Accelerator()
    device = accelerator.device
    model = load_streamed(SOURCE, device) if streamed else load_model(SOURCE).to(device)
    family = family_of(model.config)
    layers = family.layers(model.config)
    tokenizer, settings = load_tokenizer(SOURCE), params.calibration
    sample = draw_calibration(params.task, tokenizer, settings.samples, params.seed)

    def share(sample: Calibration) -> list[Batch]:
        mine = (accelerator.process_index, accelerator.num_processes)
        return sample.batches(tokenizer.pad_token_id, settings.batch_size, *mine, causal=family.causal)

    def reduce(value: Tensor) -> Tensor:
        total: Tensor = accelerator.reduce(value, "sum")
        return total

    provenance = {"fingerprint": sample.fingerprint, "seed": params.seed, "samples": len(sample.rows)}
    key = {
        "source": identity(SOURCE),
        "sample": sample.fingerprint,
        "params": params.model_dump(mode="json", include={"seed", "task", "calibration", "collect"}),
        "device": str(device),
        "code": source_code(),
    }
    main, alone = accelerator.is_main_process, accelerator.num_processes == 1
    with ExitStack() as stack:
        directory, store = stack.enter_context(resumable_directory(OUTPUT, key)) if main else (None, None)
        writer = stack.enter_context(StatisticsWriter(directory, store if alone else None))
        journal = Journal(store, device) if store and alone else None
        left = [layer for layer in layers if layer.name not in writer.tokens]
        if left and writer.tokens:
            finished = len(layers) - len(left)
            print(f"resuming at {left[0].name}: {finished} of {len(layers)} layers were measured before")
        rows = share(sample)
        collect_layers(model, family, left, rows, writer.keep, also=params.collect.also, reduce=reduce, journal=journal)
        measured = {}
        if "correlation" in params.collect.also:
            measured = measure_correlations(model, family, layers, share(sample), reduce=reduce)
        if KINDS.keys() & set(params.collect.also):
            rows = share(replace(sample, rows=sample.rows[: params.collect.gradient_samples]))
            write_gradients(directory, model, layers, rows, params.collect.also, reduce=reduce)
        writer.finish(provenance, measured)
    if main:
        print(", ".join(f"{name}: {tokens} tokens" for name, tokens in writer.tokens.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
