"""Estimates of the memory that a stage needs, made from the configuration, and the check against `memory_limit`.

A forward pass over the calibration sample needs, in bytes:

    whole in memory     W + L + one batch + sums of all layers
    streamed            R + B + L + one batch + sums of one layer + P, whatever the number of layers

- W: all weights; R: weights outside the blocks; B: the largest block; L: the largest tensor (copied once on reading).
- P, what passes keep between two blocks: per row of S positions (longest source plus longest target), hidden states
  of 2 d numbers in the weights' dtype for each position, and two masks of S² bytes.
- One batch, per position: 4 (8 d + 3 k (d + f)) + 4 a S bytes for inputs, what k experts of width f compute, and
  attention with a heads. `norms` adds 8 k d for the inputs and outputs of each choice of an expert.
- Keeping a layer's tokens (alignment by activations, router rows of an export) adds 2 d numbers for each position of
  the sample, whole or streamed.

Measuring the likelihood of targets, a vocabulary of V, adds to a pass without sums

- logits of one batch: V numbers in the weights' dtype for each position, and float32 ones of 12 bytes each, of which
  there are at most `LOGITS_AT_ONCE`;
- to P: masks in the weights' dtype, as some kinds of attention need them, and the keys and values of all layers of a
  decoder with an encoder, which keeps them.

Generating text needs the model whole, and keys and values of all layers for each position of a batch.

Training needs 4 W in float32: weights, gradients and two Adam states. In half precision it needs 9 W, because Adam
moves float32 copies of the weights, by float32 gradients. Keeping the best weights so far adds W, a teacher its own W.
Sharding divides this by the number of processes, but each process loads and writes whole models.

Two things do not count. The system can drop cached pages of the checkpoint's files. Freed memory goes back to the
system through `return_freed_memory` in `mcsmoe/checkpoint/streamed.py`: without it, the streamed peak grew by 10 MB
per layer of 92 MB; with it, 64 layers peak where 2 do (`python -m benchmarks.scaling`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.checkpoint.streamed import Footprint, blocks_of
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


class Rows(Protocol):
    """How many rows run, how many at a time, and the most tokens of one; a `Sampling` tells it of a sample."""

    @property
    def samples(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def positions(self) -> int: ...


def forward_needs(
    config: Any, sampling: Rows | None, also: Collection[str] | None = None, tokens: bool = False
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
    apart = 2 * k * d if "norms" in (also or ()) else 0
    batch = 4 * at_once * positions * (8 * d + 3 * k * (d + f) + apart + heads * positions)
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
    sampling: Rows | None = None,
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


LOGITS_AT_ONCE = 2**24
"""Logits of a batch that are cast to float32 and compared with its labels together."""


@dataclass(frozen=True)
class Batches:
    """`count` batches of `batch_size` rows of at most `positions` tokens, which run through the blocks together."""

    count: int
    batch_size: int
    positions: int

    @property
    def samples(self) -> int:
        """Rows of all batches."""
        return self.count * self.batch_size


def scoring_needs(config: Any, batches: Batches) -> Needs:
    """Bytes that measuring the likelihood of targets needs, by the formulas above."""
    needs, size = forward_needs(config, batches), config.dtype.itemsize if config.dtype else 4
    at_once = batches.batch_size * batches.positions * config.vocab_size
    logits = size * at_once + 12 * min(at_once, LOGITS_AT_ONCE)
    kept = keys_and_values(config, batches.positions) if config.is_encoder_decoder else 0
    return Needs(
        whole=needs.whole + logits + batches.batch_size * kept,
        streamed=needs.streamed + logits + batches.samples * (kept + 2 * (size - 1) * batches.positions**2),
    )


def keys_and_values(config: Any, positions: int) -> int:
    """Bytes of the keys and values of all layers for one row of `positions` tokens, source and target together."""
    layers = config.num_decoder_layers if config.is_encoder_decoder else config.num_hidden_layers
    width = config.num_heads * config.d_kv if config.is_encoder_decoder else config.hidden_size
    return 2 * layers * positions * width * (config.dtype.itemsize if config.dtype else 4)


def must_stream_scoring(
    limit: int | None, stage: str, config: Any, batch_size: int, positions: int, generates: bool
) -> bool:
    """Whether the model must be streamed to score batches of rows of `positions` tokens within `limit` bytes.

    generates: whether generated text is scored. Raises `MemoryLimitError` if the model does not fit streamed either,
    or not whole and has to generate.
    """
    if limit is None:
        return False
    needs = scoring_needs(config, Batches(1, batch_size, positions))
    if generates:
        needed = needs.whole + batch_size * keys_and_values(config, positions)
        if needed > limit:
            raise MemoryLimitError(limit, stage, needed, "raise it: to generate text, a model must be whole in memory")
        return False
    if needs.streamed > limit and needs.whole > limit:
        remedy = "raise it, or measure fewer examples at a time"
        raise MemoryLimitError(limit, stage, min(needs.whole, needs.streamed), remedy)
    return needs.whole > limit


def forwards_at_once(model: Any, limit: int | None, batch_size: int, positions: int) -> int | None:
    """How many batches of rows of `positions` tokens can run through the blocks of a streamed model together.

    At least one: whether that fits was for `must_stream_scoring` to say. None means any number: there is no `limit`,
    or the model is whole, and batches run one after another.
    """
    if limit is None or blocks_of(model) is None:
        return None
    one, two = (scoring_needs(model.config, Batches(count, batch_size, positions)).streamed for count in (1, 2))
    return max(1, 1 + (limit - one) // (two - one))


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
    # Adam works on weights, gradients and two states, all float32; half-precision weights are kept beside them.
    half = student.dtype is not None and student.dtype.itemsize == 2
    needed = ((9 if half else 4) + keeps_best) * learns + teaches
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


def between_blocks(config: Any, sampling: Rows) -> int:
    """P of the formulas above: bytes that passes over the sample keep between two blocks."""
    d = max((layer.d_model for layer in sparse_layers(config)), default=0)
    states = 2 * d * (config.dtype.itemsize if config.dtype else 4)
    return sampling.samples * sampling.positions * (states + 2 * sampling.positions)
