"""From encoded examples to padded batches of tensors."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mcsmoe.tasks.task import Encoded

IGNORED = -100
"""Label of padding, which no loss and no statistic counts."""

Batch = dict[str, Tensor]


def collate(rows: Sequence[Encoded], pad: int) -> Batch:
    """`input_ids`, `attention_mask` [B, S] and `labels` [B, T], padded on the right."""
    source, target = max(len(r.source) for r in rows), max(len(r.target) for r in rows)
    ids = torch.full((len(rows), source), pad)
    mask = torch.zeros(len(rows), source, dtype=torch.long)
    labels = torch.full((len(rows), target), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row.source)] = torch.tensor(row.source)
        mask[i, : len(row.source)] = 1
        labels[i, : len(row.target)] = torch.tensor(row.target)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def in_order(rows: Sequence[Encoded], pad: int, batch_size: int) -> Iterator[Batch]:
    """Batches in the given order; the last one may be smaller, none is dropped."""
    for start in range(0, len(rows), batch_size):
        yield collate(rows[start : start + batch_size], pad)


def length_grouped(rows: Sequence[Encoded], batch_size: int, seed: int, window: int = 50) -> list[list[int]]:
    """Indices of all rows in shuffled batches of like length.

    Rows are shuffled, sorted by length inside windows of `window` batches, cut, and the batches shuffled: little
    padding, and still another mixture every epoch.
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
