"""The loss of recovery: distillation of a student from the full model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcsmoe.params import Distillation
from mcsmoe.routing.watch import real_tokens
from mcsmoe.tasks.batches import IGNORED, Batch, is_causal, model_inputs
from mcsmoe.training.distillation import HiddenStates, distillation_loss
from mcsmoe.training.loop import Losses


class TeacherLoss:
    """Runs `teacher` in eval mode without gradient beside the student; terms as in `distillation_loss`."""

    def __init__(self, teacher: nn.Module, settings: Distillation) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._settings = settings
        self._causal = is_causal(teacher)

    def __call__(self, model: nn.Module, batch: Batch, label_tokens: Tensor) -> Losses:
        """See `Fit.loss`; each process's mean over its own label tokens is weighted by how many it has."""
        wants_hidden = self._settings.hidden > 0
        inputs = model_inputs(batch, self._causal)
        student = model(**inputs, output_hidden_states=wants_hidden)
        with torch.no_grad():
            teacher = self._teacher(**inputs, output_hidden_states=wants_hidden)
        hidden = _hidden_states(student, teacher, batch, self._causal) if wants_hidden else None
        terms = distillation_loss(student.logits, teacher.logits, batch["labels"], self._settings, hidden)
        share = (batch["labels"] != IGNORED).sum() / label_tokens
        return {name: term * share for name, term in terms.items()}


def _hidden_states(student: Any, teacher: Any, batch: Batch, causal: bool) -> list[HiddenStates]:
    def layers(output: Any, stack: str) -> Sequence[Tensor]:
        states: Sequence[Tensor] = getattr(output, "hidden_states" if causal else f"{stack}_hidden_states")
        return states[1:]

    return [
        HiddenStates(layers(student, stack), layers(teacher, stack), mask)
        for stack, mask in real_tokens(batch, causal).items()
    ]
