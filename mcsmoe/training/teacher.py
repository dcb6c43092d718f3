"""The loss of recovery: distillation of a student from the full model."""

from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.params import Distillation
from mcsmoe.tasks.batches import IGNORED, Batch
from mcsmoe.training.distillation import HiddenStates, distillation_loss
from mcsmoe.training.loop import Losses

STACKS = ("encoder", "decoder")


class TeacherLoss:
    """Runs `teacher` in eval mode without gradient beside the student; terms as in `distillation_loss`."""

    def __init__(self, teacher: nn.Module, settings: Distillation) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._settings = settings

    def __call__(self, model: nn.Module, batch: Batch, label_tokens: Tensor) -> Losses:
        """See `Fit.loss`; each process's mean over its own label tokens is weighted by how many it has."""
        wants_hidden = self._settings.hidden > 0
        student = model(**batch, output_hidden_states=wants_hidden)
        with torch.no_grad():
            teacher = self._teacher(**batch, output_hidden_states=wants_hidden)
        hidden = _hidden_states(student, teacher, batch) if wants_hidden else None
        terms = distillation_loss(student.logits, teacher.logits, batch["labels"], self._settings, hidden)
        share = (batch["labels"] != IGNORED).sum() / label_tokens
        return {name: term * share for name, term in terms.items()}


def _hidden_states(student: Any, teacher: Any, batch: Batch) -> list[HiddenStates]:
    masks = {"encoder": batch["attention_mask"], "decoder": batch["labels"] != IGNORED}
    return [
        HiddenStates(
            getattr(student, f"{stack}_hidden_states")[1:],
            getattr(teacher, f"{stack}_hidden_states")[1:],
            masks[stack],
        )
        for stack in STACKS
    ]
