"""What work needs of memory, told from a configuration before it starts, and whether `memory_limit` allows it.

With W all weights, R those outside the blocks, B the largest block, L the largest tensor (it is copied once while it is
read), all in bytes, a forward pass over the calibration sample needs

    whole in memory     W + L + one batch + sums of all layers
    streamed            R + B + L + one batch + sums of one layer + what passes keep between two blocks

whatever the number of layers in the second case. Passes keep hidden states, 2 d bytes of weights' dtype for each of the
sample's positions S (source and target at their greatest length), and two masks of S² bytes a row. Who looks at the
tokens of a layer (alignment by activations, router rows of an export) has them as often, in either case. One batch
takes 8 (4 d + 3 k f) + 4 (a S + d) bytes for each position, of a heads and k experts with hidden width f: inputs in
float64, experts' neurons, attention; with `norms` 32 k d more, the outputs of k experts apart. Training needs 4 W
(weights, gradients, two states of Adam), 5 W with the best weights so far, beside W of a teacher: sharding divides
these by the number of processes, but each holds what it loads and writes whole. Pages of the checkpoint's files, which
the system can drop, do not count.

Freed memory counts neither, thanks to `return_freed_memory` in `mcsmoe/checkpoint/streamed.py`: without it, the
streamed peak in `python -m benchmarks.streaming` grew by 10 MB with each layer of 92 MB; with it, 12 layers take what 6
take.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mcsmoe.calibration.sample import Sampling
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.checkpoint.streamed import Footprint
from mcsmoe.errors import MemoryLimitError
from mcsmoe.families import sparse_layers

WHOLE_ONLY = ("gradients", "exact-fisher")
"""Kinds of statistics that need a backward pass, and so all weights at once."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a stage needs with the model whole in memory, and with one block after the other."""

    whole: int
    streamed: int


def forward_needs(config: Any, sampling: Sampling, also: Collection[str] | None = None, tokens: bool = False) -> Needs:
    """For a pass over the calibration sample.

    With the statistics, too, and those that `also` names, where it is given; with `tokens` for those of one layer.
    """
    weights, layers = Footprint.of(config), sparse_layers(config)
    taken = [0 if also is None else _sums(layer.experts, layer.d_model, also) for layer in layers]
    samples, positions = sampling.samples, sampling.positions
    d, f = (max((getattr(layer, size) for layer in layers), default=0) for size in ("d_model", "d_ff"))
    k = max((layer.top_k for layer in layers), default=0)
    heads = getattr(config, "num_attention_heads", 1)
    states = 2 * d * (config.dtype.itemsize if config.dtype else 4)
    row = positions * (states + 2 * positions)
    looked_at = samples * positions * states if tokens else 0
    apart = 4 * k * d if "norms" in (also or ()) else 0
    batch = sampling.batch_size * positions * (8 * (4 * d + 3 * k * f + apart) + 4 * (heads * positions + d))
    return Needs(
        whole=weights.whole + weights.tensor + batch + sum(taken) + looked_at,
        streamed=weights.resident
        + weights.block
        + weights.tensor
        + batch
        + max(taken, default=0)
        + samples * row
        + looked_at,
    )


def must_stream(
    limit: int | None,
    stage: str,
    config: Any,
    sampling: Sampling,
    also: Collection[str] | None = None,
    tokens: bool = False,
) -> bool:
    """True where the model does not fit whole; arguments as in `forward_needs`.

    Raises `MemoryLimitError` where it does not fit in pieces either, and where `also` needs it whole (`WHOLE_ONLY`).
    """
    if limit is None:
        return False
    needs = forward_needs(config, sampling, also, tokens)
    if needs.whole <= limit:
        return False
    if needs.streamed > limit:
        remedy = "raise it, or lower `samples` or `batch_size`"
        raise MemoryLimitError(limit, stage, min(needs.whole, needs.streamed), remedy)
    asked = [name for name in also or () if name in WHOLE_ONLY]
    if asked:
        remedy = f"raise it, or leave {', '.join(asked)} out of `also`"
        raise MemoryLimitError(limit, stage, needs.whole, remedy)
    return True


def check_training(
    limit: int | None, stage: str, student: Any, teacher: Any = None, keeps_best: bool = False, shares: int = 1
) -> None:
    """Raise `MemoryLimitError` where a training of configuration `student`, taught by `teacher`, does not fit.

    shares: processes that it is spread over; 1 where each holds all.
    """
    if limit is None:
        return
    learns, teaches = Footprint.of(student).whole, Footprint.of(teacher).whole if teacher else 0
    needed = (5 if keeps_best else 4) * learns + teaches
    if shares > 1:
        needed = max(learns + teaches, needed // shares + learns)
    if needed > limit:
        raise MemoryLimitError(
            limit, stage, needed, "raise it, or start from a smaller model: training is not streamed"
        )


def _sums(experts: int, d_model: int, also: Collection[str]) -> int:
    sums = LayerStatistics.zeros(experts, d_model, also, device="meta")
    return sum(value.nbytes for value in sums.tensors().values())
