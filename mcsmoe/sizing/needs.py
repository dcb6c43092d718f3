"""Memory and disk while a model is merged, computed from its configuration.

The steps are those of `mcsmoe shrink`: collect statistics, write the merged checkpoint, perhaps export it as a stock
one, verify both, and measure source and result. Formulas of a forward pass are in `mcsmoe.calibration.memory`.
"""

from collections.abc import Collection
from typing import Any

from mcsmoe.calibration.memory import (
    Batches,
    Needs,
    Rows,
    between_blocks,
    forward_needs,
    scoring_needs,
    statistics_bytes,
)
from mcsmoe.checkpoint.streamed import Footprint
from mcsmoe.families import MoELayer
from mcsmoe.sizing.sizes import Format, Sizes

FLOAT = 4
"""Bytes of a float32 number."""


def working_memory(
    config: Any, sampling: Rows, kept: int, form: Format, also: Collection[str] = (), looks: bool = False
) -> Needs:
    """Bytes of memory that the hungriest step needs, with models whole or streamed; the process itself comes on top.

    `kept` experts are left in each layer. `also` names what is collected besides the usual sums, and `looks` tells
    that merging uses the tokens of a layer. For a stock result the tokens of one layer are kept, which tell how well
    its router rows agree with the source. Models are measured on rows like those of the sample.
    """
    steps = [
        forward_needs(config, sampling, also=also),
        forward_needs(config, sampling, tokens=looks or form == "stock"),
        scoring_needs(config, Batches(1, sampling.batch_size, sampling.positions)),
    ]
    merging = merging_bytes(config, kept)
    return Needs(
        whole=max(merging, *(step.whole for step in steps)), streamed=max(merging, *(step.streamed for step in steps))
    )


def merging_bytes(config: Any, kept: int) -> int:
    """Bytes of memory for writing a checkpoint with `kept` experts a layer, whatever the number of layers.

    The larger of m + 1 experts, with the m = E − K + 1 members that a group can have, and of `aligning_bytes`; or the
    largest tensor outside the experts, which is copied whole.
    """
    sizes = Sizes.of(config)
    needs = [
        max((layer.experts - kept + 2) * sizes.by_layer[layer.name].expert, aligning_bytes(sizes, layer))
        for layer in sizes.layers
    ]
    return max(*needs, Footprint.of(config).tensor)


def aligning_bytes(sizes: Sizes, layer: MoELayer) -> int:
    """Bytes of memory for weight matching: two experts, a float32 copy of one tensor of each, and two [f, f] float32.

    The matrices are the similarities of their hidden neurons, and the copy that the assignment works on.
    """
    expert = sizes.by_layer[layer.name].expert
    return 2 * expert + 2 * FLOAT * layer.d_ff * layer.d_model + 2 * FLOAT * layer.d_ff**2


def working_disk(config: Any, sampling: Rows, kept: int, form: Format, streamed: bool = True) -> int:
    """Bytes of disk at the worst moment, besides the source.

    Statistics stay; a stock checkpoint is made of a mapped one, which is there until both are verified. Streamed,
    collecting keeps a journal of what passes keep between two blocks, twice; and a result that does not fit into
    memory is verified from a copy of its weights.
    """
    sizes = Sizes.of(config)
    results = [sizes.kept(kept, "mapped")]
    if form == "stock":
        results.append(sizes.kept(kept, "stock"))
    journal = 2 * between_blocks(config, sampling) if streamed else 0
    copy = max(results) if streamed else 0
    return sum(statistics_bytes(config, ())) + max(journal, sum(results) + copy)
