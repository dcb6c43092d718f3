"""Measurement of everything that a plan may need, on the calibration sample, into one directory."""

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from mcsmoe.calibration.collect import collect_layers
from mcsmoe.calibration.gradients import KINDS, write_gradients
from mcsmoe.calibration.observer import Observer
from mcsmoe.calibration.statistics import StatisticsWriter
from mcsmoe.checkpoint.content import Content, source_code
from mcsmoe.checkpoint.journal import Journal
from mcsmoe.checkpoint.resume import resumable_directory
from mcsmoe.similarity.correlation import measure_correlations


def collect_model(observer: Observer, output: Path, also: Collection[str], gradient_samples: int) -> dict[str, int]:
    """Write routing statistics and whatever `also` names to `output`; return the number of tokens that each layer saw.

    Gradients use the first `gradient_samples` rows of the sample. Every process of the observer must call this; the
    first one writes. With one process and a streamed model, an interrupted run resumes at the layer where it stopped.
    Raises `CheckpointError` for statistics that are not finite; `output` then stays as it was.
    """
    model, processes, sample = observer.model, observer.processes, observer.sample
    device = processes.device or model.device
    key = {
        "source": Content(model.directory),
        "sample": sample.fingerprint,
        "batch_size": observer.sampling.batch_size,
        "also": [*also],
        "gradient_samples": gradient_samples,
        "device": str(device),
        "code": source_code(),
    }
    first, alone = processes.index == 0, processes.count == 1
    with ExitStack() as stack:
        directory, store = stack.enter_context(resumable_directory(output, key)) if first else (None, None)
        writer = stack.enter_context(StatisticsWriter(directory, store if alone else None))
        journal = Journal(store, device) if store and alone else None
        stack.enter_context(observer)
        module, batches, reduce = observer.module, observer.batches, processes.reduce
        left = [layer for layer in model.layers if layer.name not in writer.tokens]
        if left and writer.tokens:
            finished = len(model.layers) - len(left)
            print(f"resuming at {left[0].name}: {finished} of {len(model.layers)} layers were measured before")
        collect_layers(module, model.family, left, batches, writer.keep, also=also, reduce=reduce, journal=journal)
        measured = {}
        if "correlation" in also:
            measured = measure_correlations(module, model.family, model.layers, batches, reduce=reduce)
        if KINDS.keys() & set(also):
            rows = observer.share(sample.rows[:gradient_samples])
            write_gradients(directory, module, model.layers, rows, also, reduce=reduce)
        writer.finish(observer.provenance, measured)
    return writer.tokens
