"""Routing statistics of the permuted model on calibration text; any number of processes gives the same."""

from pathlib import Path

from stages.common import run, start
from stages.launch import launched

SOURCE = Path("artifacts/permute")
OUTPUT = Path("artifacts/collect")


def main() -> None:
    """Count on artifacts/permute what merging needs; write artifacts/collect."""
    params = start()
    if not launched(params, "stages.collect"):
        return
    from accelerate import Accelerator

    from mcsmoe.architectures.registry import family_of
    from mcsmoe.checkpoint.atomic import atomic_directory
    from mcsmoe.checkpoint.load import load_model, load_tokenizer
    from mcsmoe.routing.collect import collect
    from mcsmoe.tasks.calibration import draw_calibration

    accelerator = Accelerator()
    model = load_model(SOURCE).to(accelerator.device)
    family = family_of(model.config)
    tokenizer, settings = load_tokenizer(SOURCE), params.collect
    sample = draw_calibration(params.task, tokenizer, settings.samples, params.seed)
    mine = (accelerator.process_index, accelerator.num_processes)
    statistics = collect(
        model,
        family,
        family.layers(model.config),
        sample.batches(tokenizer.pad_token_id, settings.batch_size, *mine),
        activations=settings.activations,
    )
    # Every statistic is a float64 sum, so the sum over processes is the statistic of the whole sample.
    total = statistics.map(lambda value: accelerator.reduce(value.to(accelerator.device), "sum").cpu())
    total.provenance = {"fingerprint": sample.fingerprint, "seed": params.seed, "samples": len(sample.rows)}
    if accelerator.is_main_process:
        with atomic_directory(OUTPUT) as directory:
            total.save(directory)
        print(", ".join(f"{name}: {int(layer.tokens)} tokens" for name, layer in total.layers.items()))
    accelerator.end_training()


if __name__ == "__main__":
    run(main)
