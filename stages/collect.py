"""Collect routing statistics of the permuted model on the calibration sample.

Any number of processes gives the same statistics.
"""

from pathlib import Path

from stages.common import made, run, start
from stages.launch import joined, launched

SOURCE = Path("artifacts/permute")
OUTPUT = Path("artifacts/collect")


def main() -> None:
    """Measure on artifacts/permute what merging needs; write artifacts/collect.

    After an interruption the next run resumes at the same layer, if the model is streamed and there is one process.
    """
    params = start(directories=[OUTPUT])
    if not launched(params, "stages.collect"):
        return
    from mcsmoe.calibration.observer import Observer
    from mcsmoe.calibration.sample import Sampling
    from mcsmoe.model import Model
    from mcsmoe.similarity.collecting import collect_model

    settings = params.collect
    with joined() as processes:
        model = Model(made(SOURCE), params.memory_limit, trust_remote_code=params.model.trust_remote_code)
        sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
        observer = Observer(model, sampling, "collect", also=settings.also, processes=processes)
        tokens = collect_model(observer, OUTPUT, settings.also, settings.gradient_samples)
        if processes.index == 0:
            print(", ".join(f"{name}: {seen} tokens" for name, seen in tokens.items()))


if __name__ == "__main__":
    run(main)
