"""How well a model predicts given targets, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from mcsmoe.progress import progress
from mcsmoe.tasks.batches import IGNORED, in_order, is_causal, model_inputs
from mcsmoe.tasks.task import Encoded


@dataclass(frozen=True)
class Likelihood:
    """Means over target tokens, each token being predicted from the target's true beginning."""

    cross_entropy: float
    """Nats per token."""
    accuracy: float
    """Share of tokens whose most likely prediction is right."""
    sequence_accuracy: float
    """Share of targets with every token right: just those that greedy decoding answers correctly."""


@torch.no_grad()
def likelihood(model: Any, rows: Sequence[Encoded], pad: int, batch_size: int, show: bool = False) -> Likelihood:
    """Measure `model`, in eval mode, on `rows`; each token weighs the same whatever its batch.

    Sums are kept in float64; padding never counts. `show` draws a progress bar. The model's mode is restored.
    """
    order = sorted(rows, key=lambda row: (len(row.source), len(row.target)))
    training, causal = model.training, is_causal(model)
    model.eval()
    loss, right_tokens, tokens, right_rows = 0.0, 0, 0, 0
    batches = progress(in_order(order, pad, batch_size, causal=causal), "score", -(-len(rows) // batch_size), show)
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        logits = model(**model_inputs(batch, causal)).logits.float()  # [B, T, V]
        labels = batch["labels"]  # [B, T]
        real = labels != IGNORED
        right = (logits.argmax(-1) == labels) & real
        loss += float(F.cross_entropy(logits[real], labels[real], reduction="none").double().sum())
        right_tokens += int(right.sum())
        tokens += int(real.sum())
        right_rows += int((right | ~real).all(-1).sum())
    model.train(training)
    return Likelihood(loss / tokens, right_tokens / tokens, right_rows / len(rows))
