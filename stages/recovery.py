"""The common part of distill and compress: train a merged model (the student) with the full model as teacher."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.common import FIGURES, made, start
from stages.launch import launched

if TYPE_CHECKING:
    from mcsmoe.params import Params
    from mcsmoe.training.loop import Fit

TEACHER = Path("artifacts/finetune")

MakeFit = Callable[[Any], "Fit"]
"""Settings of the training → a `Fit` of the student."""

Prepare = Callable[["Params", Any, MakeFit], tuple["Fit", AbstractContextManager[None]]]
"""(params, student, make_fit) → a `Fit` of the student, and the context in which it runs."""


def recover(stage: str, source: str, method: str, prepare: Prepare) -> None:
    """Train artifacts/SOURCE/METHOD as `prepare` says; write artifacts/STAGE/METHOD.

    After an interruption the next run goes on from the state that was kept last. Raises `CheckpointError` for a
    missing student or teacher, `MemoryLimitError` or `DiskFullError` without room, `ParameterError` if it diverges.
    """
    origin, output = (Path("artifacts") / step / method for step in (source, stage))
    curve = FIGURES / f"curves/{stage}-{method}.json"
    params = start(files=[curve], checkpoints=[output])
    from mcsmoe.checkpoint.source import check_source

    check_source(made(origin))
    check_source(made(TEACHER))
    if not launched(params, f"stages.{stage}"):
        return
    from mcsmoe.calibration.memory import check_training
    from mcsmoe.checkpoint.content import Content, source_code
    from mcsmoe.checkpoint.load import load_config, load_model
    from mcsmoe.checkpoint.output import check_room_for
    from mcsmoe.checkpoint.published import Published
    from mcsmoe.checkpoint.reader import Checkpoint
    from mcsmoe.checkpoint.tokenizer import load_tokenizer
    from mcsmoe.training.distillation import make_recovery
    from mcsmoe.training.writing import train

    check_training(params.memory_limit, stage, load_config(origin), load_config(TEACHER), shares=params.launch.shares)
    student = load_model(origin)
    tokenizer = load_tokenizer(origin, trust_remote_code=params.model.trust_remote_code)
    check_room_for(student, output)
    fit, during = prepare(
        params, student, lambda settings: make_recovery(params, settings, student, load_model(TEACHER), tokenizer)
    )
    train(
        fit,
        f"{stage} {method}",
        tokenizer,
        output,
        curve,
        origin,
        Published(Checkpoint(origin)),
        minutes=params.launch.checkpoint_minutes,
        key={"code": source_code(params.plugins), "student": Content(origin), "teacher": Content(TEACHER)},
        during=during,
    )
