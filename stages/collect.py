"""Routing statistics of the permuted model on calibration text; any number of processes gives the same."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from stages.common import run, start
from stages.launch import launched

SOURCE = Path("artifacts/permute")
OUTPUT = Path("artifacts/collect")


def main() -> None:
    """Measure on artifacts/permute what merging needs; write artifacts/collect."""
    params = start()
    if not launched(params, "stages.collect"):
        return
    from accelerate import Accelerator
    from torch import Tensor

    from mcsmoe.architectures.registry import family_of
    from mcsmoe.checkpoint.atomic import atomic_directory
    from mcsmoe.checkpoint.load import load_model, load_tokenizer
    from mcsmoe.progress import progress
    from mcsmoe.routing.collect import collect
    from mcsmoe.routing.differentiate import write_gradients
    from mcsmoe.routing.gradients import KINDS
    from mcsmoe.similarity.correlation import measure_correlations
    from mcsmoe.tasks.batches import Batch
    from mcsmoe.tasks.calibration import Calibration, draw_calibration

    accelerator = Accelerator()
    model = load_model(SOURCE).to(accelerator.device)
    family = family_of(model.config)
    layers = family.layers(model.config)
    tokenizer, settings = load_tokenizer(SOURCE), params.collect
    sample = draw_calibration(params.task, tokenizer, settings.samples, params.seed)

    def share(sample: Calibration) -> list[Batch]:
        mine = (accelerator.process_index, accelerator.num_processes)
        return sample.batches(tokenizer.pad_token_id, settings.batch_size, *mine, causal=family.causal)

    def reduce(value: Tensor) -> Tensor:
        total: Tensor = accelerator.reduce(value, "sum")
        return total

    batches = progress(share(sample), "collect", show=accelerator.is_main_process)
    statistics = collect(model, family, layers, batches, also=settings.also, reduce=reduce)
    if "correlation" in settings.also:
        statistics.measured = measure_correlations(model, family, layers, share(sample), reduce=reduce)
    statistics.provenance = {"fingerprint": sample.fingerprint, "seed": params.seed, "samples": len(sample.rows)}
    with atomic_directory(OUTPUT) if accelerator.is_main_process else nullcontext() as directory:
        if KINDS.keys() & set(settings.also):
            rows = share(replace(sample, rows=sample.rows[: settings.gradient_samples]))
            write_gradients(directory, model, layers, rows, settings.also, reduce=reduce)
        if directory is not None:
            statistics.save(directory)
    if accelerator.is_main_process:
        print(", ".join(f"{name}: {int(layer.tokens)} tokens" for name, layer in statistics.layers.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
