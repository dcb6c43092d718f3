"""Arguments of the public functions: checked, and turned into what the rooms of the package take."""

from collections.abc import Iterable, Sequence
from typing import Any

from mcsmoe.calibration.sample import TextSampling, in_random_order
from mcsmoe.calibration.statistics import RoutingStatistics
from mcsmoe.checkpoint.content import identity, tensor_hash
from mcsmoe.errors import ParameterError, nearest
from mcsmoe.families import positions
from mcsmoe.fields import size_in_bytes
from mcsmoe.model import Model
from mcsmoe.params import Exclude
from mcsmoe.shrinking.rows import LENGTH
from mcsmoe.tasks.passages import longest_source

SAMPLES, BATCH = 128, 4
"""Default size of a calibration sample, in blocks, and blocks at a time."""


def memory_size(limit: int | str | None) -> int | None:
    """Bytes of a memory limit. Raises `ParameterError` for what is no size."""
    try:
        found: int | None = size_in_bytes(limit)
    except ValueError as error:
        raise ParameterError("memory_limit", limit, str(error)) from None
    return found


def best_device() -> str:
    """A GPU if there is one, else the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def text_sampling(
    model: Model,
    texts: Iterable[Any],
    samples: int,
    *,
    length: int | None = None,
    batch_size: int = BATCH,
    seed: int = 0,
    column: str = "text",
) -> TextSampling:
    """How blocks are drawn from `texts` for `model`; the arguments are those of `collect`.

    Raises `ParameterError` for a number that is not positive, or a `length` that the model cannot take.
    """
    most = positions(model.config)
    if length is None:
        length = min(LENGTH, most) if model.family.causal else longest_source(model.tokenizer, min(LENGTH, most))
    for name, value, least in (("samples", samples, 1), ("batch_size", batch_size, 1), ("length", length, 2)):
        if value < least:
            raise ParameterError(name, value, f"must be at least {least}")
    if length > most:
        raise ParameterError("length", length, f"the model takes at most {most} tokens")
    return TextSampling(
        in_random_order(texts, seed, column), samples, length, batch_size, seed, causal=model.family.causal
    )


def excluded(model: Model, names: Sequence[str]) -> Exclude:
    """The layers called `names`, by stack and index. Raises `ParameterError` for a name that no sparse layer has."""
    places = {layer.name: (layer.stack, layer.index) for layer in model.layers}
    for name in names:
        if name not in places:
            raise ParameterError("exclude", name, f"sparse layers are {', '.join(places)}{nearest(name, places)}")
    found = [places[name] for name in names]
    return Exclude(**{stack: [index for own, index in found if own == stack] for stack in ("encoder", "decoder")})


def statistics_key(statistics: RoutingStatistics) -> Any:
    """What identifies statistics: their files, or the hash of all sums in memory."""
    if statistics.directory is not None:
        return identity(statistics.directory)
    return {name: tensor_hash(layer.tensors()) for name, layer in statistics.layers.items()}
