"""Align the experts of each layer to a reference expert; the model's function stays the same.

Any number of processes gives the same order.
"""

from pathlib import Path

from stages.common import FIGURES, made, run, start
from stages.launch import joined, launched

SOURCE = Path("artifacts/finetune")
OUTPUT = Path("artifacts/permute")


def main() -> None:
    """Align artifacts/finetune; write artifacts/permute and, for the report, how well hidden neurons match.

    After an interruption the next run resumes at the same layer.
    """
    figures = FIGURES / "permute.json"
    params = start(files=[figures], checkpoints=[OUTPUT])
    if not launched(params, "stages.permute"):
        return
    from mcsmoe.alignment.permute import permute_model
    from mcsmoe.calibration.observer import Observer, Processes
    from mcsmoe.calibration.sample import Sampling
    from mcsmoe.checkpoint.output import write_json
    from mcsmoe.model import Model

    with joined() as processes:
        model = Model(made(SOURCE), params.memory_limit, trust_remote_code=params.model.trust_remote_code)
        sampling = Sampling(params.task, params.calibration.samples, params.calibration.batch_size, params.seed)
        whole = Processes(device=processes.device if processes.count > 1 else None)
        tokens = params.permute.matching == "activation"
        observer = Observer(model, sampling, "permute", tokens=tokens, processes=whole)
        permuted = permute_model(observer, OUTPUT, params.permute.matching, params.permute.reference, processes)
    if permuted is None:  # another process has written it
        return
    change = round(permuted.largest_logit_change, 6)
    write_json(figures, {"largest_logit_change": change, "layers": permuted.layers})
    for name, row in permuted.layers.items():
        print(f"{name}: matching {row['before']:.4f} → {row['after']:.4f} with expert {row['reference']}")


if __name__ == "__main__":
    run(main)
