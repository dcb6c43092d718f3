"""Matching of several experts with one, on all cores: the next pair is compared while the last is being assigned."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from mcsmoe.alignment.activations import pair_moments
from mcsmoe.alignment.matching import Match, activation_similarity, length, match, promoted, weight_similarity
from mcsmoe.calibration.observer import LayerTokens
from mcsmoe.families import MoELayer, TensorSource
from mcsmoe.families.experts import read_expert

AHEAD_BYTES = 2**30
"""Similarities that may wait for their assignment, if there is more than one; a layer of Mixtral's has 0.8 GB each."""


def matched_by_weight(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int]
) -> Iterator[tuple[int, Match]]:
    """Yield each of `others` with its match to expert `reference` by weights; the objective is their cosine.

    In memory: the reference in float32, one other expert, a float32 copy of one of its tensors if it has a smaller
    dtype, and 4 f² bytes of similarities. With more than one thread, another 4 f² bytes for each pair that waits for
    its assignment: one pair, or as many as there are threads within `AHEAD_BYTES`.
    """
    target = {name: promoted(value) for name, value in read_expert(source, layer, reference).items()}
    ours = length(target, layer.layout)

    def similarities() -> Iterator[tuple[int, Tensor, float]]:
        for e in others:
            expert = read_expert(source, layer, e)
            scale = ours * length(expert, layer.layout)
            yield e, weight_similarity(target, expert, layer.layout), scale

    return _assigned(similarities())


def matched_by_activation(
    source: TensorSource, layer: MoELayer, reference: int, others: Sequence[int], tokens: LayerTokens
) -> Iterator[tuple[int, Match]]:
    """Yield each of `others` with its match to expert `reference` on the tokens routed to either.

    The objective is the mean correlation of matched neurons.
    """
    pairs = pair_moments(source, layer, tokens, reference, others)
    return _assigned((e, activation_similarity(moments), float(layer.d_ff)) for e, moments in pairs)


def _assigned(pairs: Iterator[tuple[int, Tensor, float]]) -> Iterator[tuple[int, Match]]:
    """Yield the match of each (expert, similarity, scale), in order; the number of threads does not change it."""
    threads = torch.get_num_threads()
    if threads == 1:
        # Nothing here may keep a similarity while the next is made.
        yield from ((pair[0], match(*pair[1:])) for pair in pairs)
        return
    waiting: deque[tuple[int, Future[Match]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for e, similarity, scale in pairs:
            waiting.append((e, pool.submit(match, similarity, scale)))
            most = max(1, min(threads, AHEAD_BYTES // similarity.nbytes))
            del similarity
            if len(waiting) > most:
                first, found = waiting.popleft()
                yield first, found.result()
        yield from ((e, found.result()) for e, found in waiting)
