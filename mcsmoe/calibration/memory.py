"""Estimates of the memory that a stage needs, made from the configuration, and the check against `memory_limit`.

A forward pass over the calibration sample needs, in bytes:

    whole in memory     W + L + one batch + sums of all layers
    streamed            R + B + L + one batch + sums of one layer + P, whatever the number of layers

- W: all weights; R: weights outside the blocks; B: the largest block; L: the largest tensor (copied once on reading).
- P, what passes keep between two blocks: per row of S positions (longest source plus longest target), hidden states
  of 2 d numbers in the weights' dtype for each position, and two masks of S² bytes.
- One batch, per position: 8 (4 d + 3 k f) + 4 (a S + d) bytes for inputs in float64, hidden neurons of k experts of
  width f, and attention with a heads. `norms` adds 32 k d for the separate outputs of the k experts.
- Keeping a layer's tokens (alignment by activations, router rows of an export) adds 2 d numbers for each position of
  the sample, whole or streamed.

Training needs 4 W (weights, gradients, two Adam states), or 5 W if it keeps the best weights so far, plus W for a
teacher. Sharding divides this by the number of processes, but each process loads and writes whole models.

Two things do not count. The system can drop cached pages of the checkpoint's files. Freed memory goes back to the
system through `return_freed_memory` in `mcsmoe/checkpoint/streamed.py`: without it, the streamed peak in
`python -m benchmarks.streaming` grew by 10 MB per layer of 92 MB; with it, 12 layers peak where 6 do.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from mcsmoe.calibration.sample import Draw
from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.checkpoint.streamed import Footprint
from mcsmoe.errors import MemoryLimitError
from mcsmoe.families import sparse_layers

FILES = ("correlation", "gradients", "exact-fisher")
"""Entries of `also` that are no sums, and are written to files of their own."""
WHOLE_ONLY = ("gradients", "exact-fisher")
"""Entries of `also` that need a backward pass, and therefore all weights at once."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a stage needs with the model whole in memory, and with the model streamed."""

    whole: int
    streamed: int


def forward_needs(
    config: Any, sampling: Draw | None, also: Collection[str] | None = None, tokens: bool = False
) -> Needs:
    """Bytes that a pass over the calibration sample needs, by the formulas above.

    sampling: None counts the weights alone, as for verifying a checkpoint.
    also: None collects no statistics; a collection adds the usual sums and those it names.
    tokens: whether the tokens of one layer are kept.
    """
    weights, layers = Footprint.of(config), sparse_layers(config)
    taken = [0 for _ in layers] if also is None else statistics_bytes(config, also)
    samples, at_once, positions = 0, 0, 0
    if sampling:
        samples, at_once, positions = sampling.samples, sampling.batch_size, sampling.positions
    d, f = (max((getattr(layer, size) for layer in layers), default=0) for size in ("d_model", "d_ff"))
    k = max((layer.top_k for layer in layers), default=0)
    heads = getattr(config, "num_attention_heads", 1)
    states = 2 * d * (config.dtype.itemsize if config.dtype else 4)
    looked_at = samples * positions * states if tokens else 0
    apart = 4 * k * d if "norms" in (also or ()) else 0
    batch = at_once * positions * (8 * (4 * d + 3 * k * f + apart) + 4 * (heads * positions + d))
    return Needs(
        whole=weights.whole + weights.tensor + batch + sum(taken) + looked_at,
        streamed=weights.resident
        + weights.block
        + weights.tensor
        + batch
        + max(taken, default=0)
        + (between_blocks(config, sampling) if sampling else 0)
        + looked_at,
    )


def must_stream(
    limit: int | None,
    stage: str,
    config: Any,
    sampling: Draw | None = None,
    also: Collection[str] | None = None,
    tokens: bool = False,
) -> bool:
    """Whether the model must be streamed because it does not fit whole into `limit` bytes (None: no limit).

    Other arguments as in `forward_needs`. Raises `MemoryLimitError` if the model does not fit streamed either, or
    if `also` names an entry of `WHOLE_ONLY`.
    """
    if limit is None:
        return False
    needs = forward_needs(config, sampling, also, tokens)
    if needs.whole <= limit:
        return False
    if needs.streamed > limit:
        remedy = "raise it, or lower `samples` or `batch_size`" if sampling else "raise it"
        raise MemoryLimitError(limit, stage, min(needs.whole, needs.streamed), remedy)
    asked = [name for name in also or () if name in WHOLE_ONLY]
    if asked:
        remedy = f"raise it, or leave {', '.join(asked)} out of `also`"
        raise MemoryLimitError(limit, stage, needs.whole, remedy)
    return True


def check_training(
    limit: int | None, stage: str, student: Any, teacher: Any = None, keeps_best: bool = False, shares: int = 1
) -> None:
    """Raise `MemoryLimitError` if training `student` with `teacher` (configurations) needs more than `limit` bytes.

    keeps_best: whether a copy of the best weights is kept. shares: processes that the training is sharded over;
    1 if every process holds everything.
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


def statistics_bytes(config: Any, also: Collection[str]) -> list[int]:
    """Bytes of the sums of each sparse layer: the usual ones and those that `also` names."""
    sums = (LayerStatistics.zeros(layer.experts, layer.d_model, also, device="meta") for layer in sparse_layers(config))
    return [sum(value.nbytes for value in each.tensors().values()) for each in sums]


def between_blocks(config: Any, sampling: Draw) -> int:
    """P of the formulas above: bytes that passes over the sample keep between two blocks."""
    d = max((layer.d_model for layer in sparse_layers(config)), default=0)
    states = 2 * d * (config.dtype.itemsize if config.dtype else 4)
    return sampling.samples * sampling.positions * (states + 2 * sampling.positions)
