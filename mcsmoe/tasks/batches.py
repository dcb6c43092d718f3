"""Padded batches of tensors from encoded examples."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mcsmoe.tasks.task import Encoded

IGNORED = -100
"""Label of a position where nothing is predicted, such as padding; losses skip it."""

Batch = dict[str, Tensor]


def collate(rows: Sequence[Encoded], pad: int, *, causal: bool) -> Batch:
    """Return `input_ids`, `attention_mask` [B, S] and `labels` [B, T], padded on the right.

    For a `causal` model, the target follows the source, which needs at least one token. Labels are already
    shifted, so S = T and logits[b, t] predict labels[b, t]:

        source 5 6 7, target 8 9 → input_ids 5 6 7 8, labels -100 -100 8 9
    """
    if causal:
        rows = [Encoded([*r.source, *r.target[:-1]], [IGNORED] * (len(r.source) - 1) + r.target) for r in rows]
    ids, labels = _padded([r.source for r in rows], pad), _padded([r.target for r in rows], IGNORED)
    lengths = torch.tensor([[len(r.source)] for r in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths).long(), "labels": labels}


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """[rows, longest row]"""
    longest = max(map(len, rows))
    return torch.from_numpy(np.array([[*row, *[fill] * (longest - len(row))] for row in rows], np.int64))


def is_causal(model: Any) -> bool:
    """True for a decoder-only model, false for a sequence-to-sequence one."""
    return not model.config.is_encoder_decoder


def model_inputs(batch: Mapping[str, Tensor], causal: bool) -> Batch:
    """Return what `forward` takes of a batch; a causal model gets no labels, because it would shift them again."""
    return {name: value for name, value in batch.items() if not (causal and name == "labels")}


PADDING = 0.1
"""Most padding in a batch of the calibration sample, relative to its real tokens."""


def longest_first(rows: Sequence[Encoded], *, causal: bool) -> list[Encoded]:
    """The rows sorted by length; what does not fit into memory then fails at once."""
    return sorted(rows, key=lambda row: _lengths(row, causal), reverse=True)


def by_length(rows: Sequence[Encoded], pad: int, batch_size: int, *, causal: bool) -> Iterator[Batch]:
    """Yield batches of rows of similar length, longest first.

    A batch ends at `batch_size` rows, or where one more would make its padding more than `PADDING`.
    """
    batch: list[Encoded] = []
    for row in longest_first(rows, causal=causal):
        if len(batch) == batch_size or (batch and _padding([*batch, row], causal) > PADDING):
            yield collate(batch, pad, causal=causal)
            batch = []
        batch.append(row)
    if batch:
        yield collate(batch, pad, causal=causal)


def _lengths(row: Encoded, causal: bool) -> tuple[int, ...]:
    """Tokens of a row in each stack of the model."""
    source, target = len(row.source), len(row.target)
    return (source + target - 1,) if causal else (source, target)


def _padding(rows: Sequence[Encoded], causal: bool) -> float:
    each = [_lengths(row, causal) for row in rows]
    return len(rows) * sum(map(max, zip(*each))) / sum(map(sum, each)) - 1


def length_grouped(rows: Sequence[Encoded], batch_size: int, seed: int, window: int = 50) -> list[list[int]]:
    """Return the indices of all rows as shuffled batches of rows of similar length.

    Rows are shuffled, sorted by length within windows of `window` batches, and cut into batches, which are then
    shuffled. This needs little padding, yet each seed mixes the rows differently.
    """
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    size = window * batch_size
    by_length = [
        i
        for start in range(0, len(order), size)
        for i in sorted(order[start : start + size], key=lambda i: (len(rows[i].source), len(rows[i].target)))
    ]
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    rng.shuffle(batches)
    return batches
