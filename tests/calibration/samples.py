"""A small Switch that computes in float64, and padded batches of rows of different lengths."""

from typing import Any

import torch
from torch import Tensor

from mcsmoe.families import family_of
from tests.models import VOCABULARY, tiny_switch

ROWS = 7
Row = tuple[Tensor, Tensor]


def exact_switch(**changes: Any) -> Any:
    """A Switch that computes in float64 throughout, so that only the order of sums can make a difference."""
    model = tiny_switch(**changes).double()
    for module in model.modules():
        if hasattr(module, "jitter_noise"):
            module.dtype = torch.float64  # the configuration refuses float64 routers
        if hasattr(module, "variance_epsilon"):
            module.forward = lambda x, m=module: (  # the stock norm takes its variance in float32
                m.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + m.variance_epsilon)
            )
    return model


def samples(rows: int = ROWS, vocabulary: int = VOCABULARY) -> list[Row]:
    """Sources and targets of different lengths."""
    generator = torch.Generator().manual_seed(5)

    def draw(low: int, high: int) -> Tensor:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(2, vocabulary, (length,), generator=generator)

    return [(draw(4, 15), draw(2, 9)) for _ in range(rows)]


def batches(rows: list[Row], size: int, extra: int = 0) -> list[dict[str, Tensor]]:
    """Right-padded batches, with `extra` columns of padding."""

    def pad(values: tuple[Tensor, ...], fill: int) -> Tensor:
        width = max(len(v) for v in values) + extra
        return torch.stack([torch.nn.functional.pad(v, (0, width - len(v)), value=fill) for v in values])

    made = []
    for start in range(0, len(rows), size):
        sources, targets = zip(*rows[start : start + size])
        mask = pad(tuple(torch.ones_like(s) for s in sources), 0)
        made.append({"input_ids": pad(sources, 0), "attention_mask": mask, "labels": pad(targets, -100)})
    return made


@torch.no_grad()
def kill(model: Any, *experts: int) -> None:
    """Let no token select any of `experts` (not 0 or 1), in any layer: their logits are 0, another is above."""
    for layer in family_of(model.config).layers(model.config):
        router = model.get_submodule(layer.router_path).classifier.weight
        router[1] = -router[0]
        router[list(experts)] = 0
