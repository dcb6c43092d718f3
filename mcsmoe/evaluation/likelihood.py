"""How well a model predicts given targets, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
    losses: NDArray[np.float64]
    """Nats of each row's target [N], in the order of the rows."""
    right: NDArray[np.float64]
    """Tokens of each row's target that are predicted right [N]."""
    tokens: NDArray[np.float64]
    """Tokens of each row's target [N]."""


@torch.no_grad()
def likelihood(model: Any, rows: Sequence[Encoded], pad: int, batch_size: int, show: bool = False) -> Likelihood:
    """Measure `model`, in eval mode, on `rows`; each token weighs the same whatever its batch.

    Sums are kept in float64; padding never counts. `show` draws a progress bar. The model's mode is restored.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].source), len(rows[i].target)))
    training, causal = model.training, is_causal(model)
    model.eval()
    right_rows, each = 0, []
    steps = -(-len(rows) // batch_size)
    batches = progress(in_order([rows[i] for i in order], pad, batch_size, causal=causal), "score", steps, show)
    for batch in batches:
        batch = {name: value.to(model.device) for name, value in batch.items()}
        logits = model(**model_inputs(batch, causal)).logits.float()  # [B, T, V]
        labels = batch["labels"]  # [B, T]
        real = labels != IGNORED
        right = (logits.argmax(-1) == labels) & real
        nats = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
        nats[real] = F.cross_entropy(logits[real], labels[real], reduction="none").double()
        right_rows += int((right | ~real).all(-1).sum())
        each.append(torch.stack([nats.sum(-1), right.sum(-1), real.sum(-1)]).cpu())
    model.train(training)
    losses, hits, tokens = torch.cat(each, 1)[:, np.argsort(order)].numpy()
    count = float(tokens.sum())
    means = float(losses.sum()) / count, float(hits.sum()) / count, right_rows / len(rows)
    return Likelihood(*means, losses, hits, tokens)
