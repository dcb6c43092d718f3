"""Small layers to group: ordinary ones, and those with ties, unused experts and twins."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from mcsmoe.grouping.budget import by_importance
from mcsmoe.grouping.group import Problem
from mcsmoe.similarity.evidence import cosine


def problem(similarity: Tensor, groups: int, frequency: Tensor | None = None, seed: int = 0) -> Problem:
    """A layer whose `groups` most used experts are dominant; without `frequency` [E], use falls with the id."""
    if frequency is None:
        frequency = torch.arange(len(similarity), 0, -1, dtype=torch.float64)
    frequency = frequency / frequency.sum().clamp(min=1)
    return Problem(frequency, by_importance(frequency)[:groups], lambda: similarity, seed=seed)


def vectors(experts: int, seed: int, width: int = 20) -> Tensor:
    """What experts are compared by: [E, width]; no two are equally far apart."""
    return torch.randn(experts, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_problems(count: int) -> Iterator[Problem]:
    """Layers of 1 to 12 experts, each budget from 1 to E, of all the kinds that occur or may go wrong."""
    generator = torch.Generator().manual_seed(0)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    for i in range(count):
        experts = 1 + below(12)
        x = vectors(experts, i)
        noise = torch.rand(experts, experts, generator=generator, dtype=torch.float64)
        similarity = [
            cosine(x @ x.T),
            cosine(x[:, :2] @ x[:, :2].T),
            cosine(torch.zeros(experts, experts)),  # dead experts
            cosine(x[: 1 + experts // 3].repeat(3, 1)[:experts] @ x[: 1 + experts // 3].repeat(3, 1)[:experts].T),
            ((noise + noise.T) / 2).fill_diagonal_(1.0),  # no inner product has it
            (noise + noise.T > 1).double().fill_diagonal_(1.0),  # ties, and experts without a neighbour
            torch.ones(experts, experts, dtype=torch.float64),
        ][below(7)]
        use = torch.randint([1, 2, 50][below(3)], (experts,), generator=generator).double()
        yield replace(problem(similarity, 1 + below(experts), use), seed=below(1000))
