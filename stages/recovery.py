"""The common part of distill and compress: train a merged model (the student) with the full model as teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import FIGURES, start
from stages.launch import launched

if TYPE_CHECKING:
    from mcsmoe.params import Params
    from mcsmoe.training.loop import Fit

TEACHER = Path("artifacts/finetune")

MakeFit = Callable[[Any], "Fit"]
"""Settings of the training → a `Fit` of the student."""


def recover(stage: str, source: str, method: str, train: Callable[["Params", Any, MakeFit], "Fit"]) -> None:
    """Train artifacts/SOURCE/METHOD with `train(params, student, make_fit)`; write artifacts/STAGE/METHOD.

    Raises `CheckpointError` for a missing student or teacher, `MemoryLimitError` or `DiskFullError` without room.
    """
    params = start()
    from mcsmoe.checkpoint.load import check_source

    origin, output = (Path("artifacts") / step / method for step in (source, stage))
    check_source(origin)
    check_source(TEACHER)
    if not launched(params, f"stages.{stage}"):
        return
    from mcsmoe.calibration.memory import check_training
    from mcsmoe.checkpoint.load import load_config, load_model, load_tokenizer
    from mcsmoe.checkpoint.output import check_room_for
    from mcsmoe.checkpoint.published import Published
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.training.distillation import make_recovery
    from mcsmoe.training.loop import write_training

    check_training(params.memory_limit, stage, load_config(origin), load_config(TEACHER), shares=params.launch.shares)
    student, tokenizer, beside = load_model(origin), load_tokenizer(origin), Published(Checkpoint(origin))
    check_room_for(student, output)
    fit = train(
        params, student, lambda settings: make_recovery(params, settings, student, load_model(TEACHER), tokenizer)
    )
    write_training(fit, tokenizer, output, FIGURES / f"curves/{stage}-{method}.json", beside)
