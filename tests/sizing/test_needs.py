"""Memory and disk of the steps, against the formulas and against what a step leaves on disk."""

from pathlib import Path

import pytest

from mcsmoe.calibration.memory import Batches, forward_needs, scoring_needs
from mcsmoe.calibration.sample import TextSampling
from mcsmoe.calibration.statistics import LayerStatistics, RoutingStatistics
from mcsmoe.sizing import Sizes, aligning_bytes, merging_bytes, working_disk, working_memory
from tests.causal import tiny_mixtral

SAMPLING = TextSampling((), samples=6, length=8, batch_size=2, seed=0, causal=True)
EXPERT = 3 * 32 * 48 * 4


def test_merging_holds_the_largest_group_that_there_can_be():
    config = tiny_mixtral().config
    assert merging_bytes(config, 1) == 5 * EXPERT  # four members and their sum
    sizes = Sizes.of(config)
    assert merging_bytes(config, 3) == aligning_bytes(sizes, sizes.layers[0])
    assert aligning_bytes(sizes, sizes.layers[0]) == 2 * EXPERT + 8 * 48 * 32 + 8 * 48 * 48
    large = tiny_mixtral(vocab_size=6000).config  # an embedding is larger than any group
    assert merging_bytes(large, 1) == 6000 * 32 * 4


@pytest.mark.parametrize("kept", [1, 3])
def test_the_hungriest_step_counts(kept: int):
    config = tiny_mixtral().config
    mapped, stock = (working_memory(config, SAMPLING, kept, form) for form in ("mapped", "stock"))
    measuring = scoring_needs(config, Batches(1, SAMPLING.batch_size, SAMPLING.positions))
    collecting = forward_needs(config, SAMPLING, also=())
    assert mapped.whole == max(measuring.whole, collecting.whole)
    assert stock.streamed >= max(mapped.streamed, forward_needs(config, SAMPLING, tokens=True).streamed)
    assert mapped.streamed < mapped.whole


def test_memory_of_merging_counts_where_it_is_the_most():
    config = tiny_mixtral(num_hidden_layers=1, num_local_experts=64, vocab_size=10).config
    one = TextSampling((), samples=1, length=2, batch_size=1, seed=0, causal=True)
    few, many = working_memory(config, one, 63, "mapped"), working_memory(config, one, 1, "mapped")
    assert many.streamed >= few.streamed
    assert many.streamed >= 65 * EXPERT


def test_disk_holds_statistics_results_and_what_is_in_between(tmp_path: Path):
    config = tiny_mixtral().config
    sizes = Sizes.of(config)
    mapped, stock = sizes.kept(2, "mapped"), sizes.kept(2, "stock")
    layers = {layer.name: LayerStatistics.zeros(layer.experts, layer.d_model) for layer in sizes.layers}
    sums = sum(value.nbytes for layer in layers.values() for value in layer.tensors().values())
    RoutingStatistics(layers).save(tmp_path)
    assert sums <= (tmp_path / "statistics.safetensors").stat().st_size
    assert working_disk(config, SAMPLING, 2, "mapped", streamed=False) == sums + mapped
    assert working_disk(config, SAMPLING, 2, "stock", streamed=False) == sums + mapped + stock
    assert working_disk(config, SAMPLING, 2, "stock") == sums + mapped + stock + mapped


def test_a_long_sample_takes_disk_while_it_is_streamed():
    config = tiny_mixtral().config
    long = TextSampling((), samples=10_000, length=8, batch_size=2, seed=0, causal=True)
    kept = forward_needs(config, long).streamed - forward_needs(config, None).streamed
    assert 2 * 0.9 * kept < working_disk(config, long, 2, "mapped") < 2 * kept + Sizes.of(config).total
