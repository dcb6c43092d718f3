"""Gram matrices of experts' tensors, a few rows of all experts in memory as float64 at a time."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mcsmoe.similarity.registry import Evidence, collected

CHUNK = 2**23
"""Numbers of all experts together that are in memory as float64 at a time."""


def gram(parts: Iterable[Tensor]) -> Tensor:
    """Inner products [E, E] of the experts' vectors, of which `parts` [E, …] are consecutive pieces."""
    return torch.stack([part.flatten(1) @ part.flatten(1).T for part in parts]).sum(0)


def weights(evidence: Evidence, name: str) -> Iterator[Tensor]:
    """Tensor `name` of all experts in parts [E, rows, …] float64."""
    layer = evidence.layer
    return _chunks([layer.read(evidence.source, e, name) for e in range(layer.experts)])


def gradients(evidence: Evidence, name: str, similarity: str) -> Iterator[Tensor]:
    """The same of the task loss's gradient. Raises `CheckpointError` where it was not collected."""
    layer, found = evidence.layer, collected(evidence.gradients, similarity)
    return _chunks([found.tensor("gradient", layer, e, name) for e in range(layer.experts)])


def _chunks(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    rows = max(1, CHUNK * len(tensors[0]) // sum(tensor.numel() for tensor in tensors))
    for parts in zip(*(tensor.split(rows) for tensor in tensors), strict=True):
        yield torch.stack(parts).double()
