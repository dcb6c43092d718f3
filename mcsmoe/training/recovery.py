"""The training that distill and compress share: a student learns from the full model on the task."""

from typing import Any

from mcsmoe.architectures.registry import family_of
from mcsmoe.params import Compress, Distill, Params
from mcsmoe.tasks.selection import hold_out
from mcsmoe.tasks.task import TASKS
from mcsmoe.training.loop import Fit, make_accelerator
from mcsmoe.training.sharding import shard
from mcsmoe.training.teacher import TeacherLoss


def make_recovery(params: Params, settings: Distill | Compress, student: Any, teacher: Any, tokenizer: Any) -> Fit:
    """A `Fit` of `student` on the examples that the teacher was fine-tuned on; the last weights are kept.

    Routers are frozen: the index map was made for the experts that they choose now.
    """
    task, accelerator = TASKS[params.task.name], make_accelerator()
    train, _ = hold_out(task.examples(params.task, "train"), params.task.selection, params.seed)
    family = family_of(student.config)
    for layer in family.layers(student.config):
        student.get_submodule(layer.router_path).requires_grad_(False)
    if params.launch.fsdp:
        shard(teacher, accelerator.device)
    else:
        teacher.to(accelerator.device)
    return Fit(
        model=student,
        settings=settings,
        epoch=lambda number: task.encode(tokenizer, train, params.task, params.seed + number),
        loss=TeacherLoss(teacher, settings.loss),
        pad=tokenizer.pad_token_id,
        causal=family.causal,
        seed=params.seed,
        accelerator=accelerator,
        fsdp=params.launch.fsdp,
    )
