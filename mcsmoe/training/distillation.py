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


ANSWER = "teacher's "
"""Start of the names under which a batch holds what the teacher says of it."""


class TeacherLoss:
    """The loss of a student beside `teacher`, which runs in eval mode without gradient; see `distillation_loss`."""

    def __init__(self, teacher: nn.Module, settings: Distillation) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._settings = settings
        self._causal = is_causal(teacher)

    @torch.no_grad()
    def answered(self, batch: Batch) -> Batch:
        """The batch with the teacher's logits and, if they count, its hidden states; see `Fit.ready`."""
        found = self._run(self._teacher, batch)
        answers = {"logits": found.logits}
        if self._settings.hidden > 0:
            answers |= {stack: torch.stack([*states]) for stack, states in self._states(found).items()}  # [L, B, T, d]
        return batch | {ANSWER + name: value for name, value in answers.items()}

    def __call__(self, model: nn.Module, batch: Batch) -> Losses:
        """The terms for an `answered` batch; see `Fit.loss`."""
        found, hidden = self._run(model, batch), None
        if self._settings.hidden > 0:
            states, masks = self._states(found), counted_tokens(batch, self._causal)
            hidden = [HiddenStates(states[stack], [*batch[ANSWER + stack]], mask) for stack, mask in masks.items()]
        return distillation_loss(found.logits, batch[ANSWER + "logits"], batch["labels"], self._settings, hidden)

    def _run(self, model: nn.Module, batch: Batch) -> Any:
        given = {name: value for name, value in batch.items() if not name.startswith(ANSWER)}
        inputs = model_inputs(given, self._causal)
        return model(**inputs, use_cache=False, output_hidden_states=self._settings.hidden > 0)

    def _states(self, found: Any) -> dict[str, Sequence[Tensor]]:
        """The hidden states behind each layer, by stack."""
        if self._causal:
            return {"decoder": found.hidden_states[1:]}
        return {"encoder": found.encoder_hidden_states[1:], "decoder": found.decoder_hidden_states[1:]}


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
    loss = TeacherLoss(teacher, settings.loss)
    return Fit(
        model=student,
        settings=settings,
        epoch=lambda number: task.encode(tokenizer, train, params.task, params.seed + number),
        loss=loss,
        ready=loss.answered,
        pad=tokenizer.pad_token_id,
        causal=family.causal,
        seed=params.seed,
        accelerator=accelerator,
        fsdp=params.launch.fsdp,
    )
