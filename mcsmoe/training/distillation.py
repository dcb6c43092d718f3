"""Knowledge distillation from the full model: task loss, softened logits and, if asked for, hidden states."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mcsmoe.distributed import shard
from mcsmoe.families import family_of
from mcsmoe.params import Compress, Distill, Distillation, Params
from mcsmoe.tasks.batches import IGNORED, Batch, is_causal, model_inputs
from mcsmoe.tasks.reading import hold_out
from mcsmoe.tasks.task import TASKS
from mcsmoe.training.loop import Fit, Losses, make_accelerator
from mcsmoe.training.losses import cross_entropy
from mcsmoe.training.together import counted_tokens, mean


class HiddenStates(NamedTuple):
    """Hidden states of one stack (encoder or decoder): one tensor [B, T, d] per layer, without the embeddings.

    mask: [B, T], non-zero at real tokens (see `counted_tokens`).
    """

    student: Sequence[Tensor]
    teacher: Sequence[Tensor]
    mask: Tensor


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    settings: Distillation,
    hidden: Sequence[HiddenStates] | None = None,
) -> dict[str, Tensor]:
    """λ_task·CE + λ_kd·τ²·KL(teacher ‖ student) + λ_hd·MSE of hidden states (MC-SMoE, arXiv 2310.01334).

    student_logits, teacher_logits: [B, T, V]; labels: [B, T], -100 at positions that do not count; hidden: one
    entry per stack, required if `settings.hidden` > 0; τ: `settings.temperature`. Computed in float32; the teacher
    gets no gradient.

    `normalization: label-tokens` averages over label tokens (hidden states: over real tokens).
    `normalization: reference` follows the authors' code: KL is summed over all positions, with padding, and divided
    by the batch size, without τ²; the hidden term is ln of the MSE over all positions, -inf for equal models.

    Returns the weighted terms `task`, `kd`, `hidden` and their sum `loss`, all scalars. With `label-tokens`, `task`
    and `kd` are 0, not NaN, for a batch without labels. Raises ValueError if `settings.hidden` > 0 without `hidden`.
    """
    if settings.hidden > 0 and not hidden:
        raise ValueError("hidden states are weighted in the loss but were not given")
    of_all_positions = settings.normalization == "reference"
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    terms = {
        "task": settings.task * cross_entropy(student, labels),
        "kd": settings.kd * _divergence(student, teacher, labels, settings.temperature, of_all_positions),
        "hidden": student.new_zeros(()),
    }
    if hidden and settings.hidden > 0:
        terms["hidden"] = settings.hidden * _hidden_loss(hidden, of_all_positions)
    terms["loss"] = terms["task"] + terms["kd"] + terms["hidden"]
    return terms


def _divergence(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, of_all_positions: bool) -> Tensor:
    """KL of softened distributions, on label tokens only, to save the softmax over V at padding."""
    real = labels != IGNORED  # [B, T]
    counted = real.any(1) if of_all_positions else real  # rows [B], or tokens [B, T]
    found = mean(_kl_sum(student[counted], teacher[counted], temperature), counted.sum())
    return found if of_all_positions else temperature**2 * found


def _kl_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return F.kl_div(
        F.log_softmax(student / temperature, dim=-1),
        F.log_softmax(teacher / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )


def _hidden_loss(stacks: Sequence[HiddenStates], of_all_positions: bool) -> Tensor:
    """Mean squared error, averaged over the layers of a stack, then over the stacks; its logarithm in `reference`."""
    losses = []
    for stack in stacks:
        mask = stack.mask.bool()  # [B, T]
        if of_all_positions:
            mask = mask.any(1, keepdim=True).expand_as(mask)
        losses.append(torch.stack([_mse(s, t, mask) for s, t in zip(stack.student, stack.teacher)]).mean())
    average = torch.stack(losses).mean()
    if not of_all_positions:
        return average
    # Where student and teacher are equal, as before the first step of a model that was not merged, there is no
    # gradient; log 0 would make it NaN.
    return average.clamp(min=torch.finfo(average.dtype).tiny).log()


def _mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over real tokens and dimensions. student, teacher: [B, T, d]; mask: [B, T]."""
    error = (student.float() - teacher.detach().float()).square().mean(dim=-1)  # [B, T]
    real = mask.float()
    return mean((error * real).sum(), real.sum())


class TeacherLoss:
    """The loss of a student beside `teacher`, which runs in eval mode without gradient; see `distillation_loss`."""

    def __init__(self, teacher: nn.Module, settings: Distillation) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._settings = settings
        self._causal = is_causal(teacher)

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        """See `Fit.loss`."""
        wants_hidden = self._settings.hidden > 0
        inputs = model_inputs(batch, self._causal)
        student = model(**inputs, use_cache=False, output_hidden_states=wants_hidden)
        with torch.no_grad():
            teacher = self._teacher(**inputs, use_cache=False, output_hidden_states=wants_hidden)
        hidden = _hidden_states(student, teacher, batch, self._causal) if wants_hidden else None
        return distillation_loss(student.logits, teacher.logits, batch["labels"], self._settings, hidden)


def _hidden_states(student: Any, teacher: Any, batch: Batch, causal: bool) -> list[HiddenStates]:
    def layers(output: Any, stack: str) -> Sequence[Tensor]:
        states: Sequence[Tensor] = getattr(output, "hidden_states" if causal else f"{stack}_hidden_states")
        return states[1:]

    return [
        HiddenStates(layers(student, stack), layers(teacher, stack), mask)
        for stack, mask in counted_tokens(batch, causal).items()
    ]


def make_recovery(params: Params, settings: Distill | Compress, student: Any, teacher: Any, tokenizer: Any) -> Fit:
    """Return a `Fit` of `student` on the examples that the teacher was fine-tuned on; it keeps the last weights.

    Routers are frozen, because the index map was made for the experts that they select now.
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
    family.hasten(teacher)
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
