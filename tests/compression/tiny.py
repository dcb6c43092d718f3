"""A merged model small enough to be trained in a test, factorised in every way."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from mcsmoe.compression.factorise import factorise_model, sparse_parts
from mcsmoe.compression.pruner import Pruner
from mcsmoe.modeling.linears_mcsmoe import FactorisedLinears
from mcsmoe.params import Compress
from tests import models
from tests.compression.settings import compress

D_MODEL, D_FF = 16, 24
WEIGHTS = [f"{layer}.{name}" for layer in models.KEPT for name in ("wi", "wo")]
EXPERTS = sum(models.KEPT.values())
BATCH = {"labels" if name == "decoder_input_ids" else name: value for name, value in models.batch().items()}


def merged() -> Any:
    """`tiny_merged`, still smaller."""
    return models.tiny_merged(d_model=D_MODEL, d_ff=D_FF, num_heads=2, dropout_rate=0.0)


def factorised(settings: Compress | None = None, exclude: Collection[str] = ()) -> Any:
    """`merged`, factorised as `settings` say."""
    model = merged()
    factorise_model(model, settings or compress(), FactorisedLinears.from_factors, exclude)
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits on `BATCH`."""
    value: Tensor = model.eval()(**BATCH).logits
    return value


def adamw(parameters: Any) -> Any:
    """Its moments push pruned weights for many steps."""
    return torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1)


def sgd(parameters: Any) -> Any:
    """With momentum and weight decay."""
    return torch.optim.SGD(parameters, lr=1e-1, momentum=0.9, weight_decay=0.1)


def train(
    model: Any,
    pruner: Pruner,
    steps: int,
    optimiser: Callable[[Any], Any] = adamw,
    each: Callable[[int], None] | None = None,
) -> None:
    """Train on `BATCH` as `Fit` does, and call `each` after each step."""
    model.train()
    stepper = optimiser(model.parameters())
    for step in range(1, steps + 1):
        stepper.zero_grad()
        model(**BATCH).loss.backward()
        pruner.before_step()
        stepper.step()
        pruner.after_step(step)
        if each:
            each(step)


def dead(model: Any) -> Tensor:
    """Which units of S are all zero, over all weights [n]."""
    zero = [(part.values.detach() == 0).all(1) for part in sparse_parts(model).values()]
    return torch.cat(zero) if zero else torch.zeros(0, dtype=torch.bool)


def kept(model: Any) -> int:
    """Units of S that the model holds."""
    return len(dead(model))
