"""What is timed, and how times become figures; how long anything takes is no matter of a test."""

import pytest
import torch

from mcsmoe.evaluation.speed import PeakMemory, Workload, figures, run_once
from tests.causal import tiny_mixtral
from tests.models import VOCABULARY, tiny_compressed, tiny_switch

MODELS = {"switch": tiny_switch, "compressed": tiny_compressed, "mixtral": tiny_mixtral}


def test_figures_are_median_and_quartiles():
    found = figures(Workload(4, 10), [4.0, 1.0, 2.0, 3.0, 8.0])
    assert found["prefill_batch_4_seconds"] == 3
    assert (found["prefill_batch_4_seconds_low"], found["prefill_batch_4_seconds_high"]) == (2, 4)
    assert found["prefill_batch_4_tokens_per_second"] == pytest.approx(40 / 3, rel=1e-3)
    assert found["prefill_batch_4_tokens_per_second_low"] == 10
    assert found["prefill_batch_4_tokens_per_second_high"] == 20


def test_generation_counts_new_tokens():
    assert figures(Workload(4, 10, 5), [2.0])["generate_batch_4_tokens_per_second"] == 10


@pytest.mark.parametrize("name", MODELS)
def test_prefill_reads_the_prompt_and_generation_writes_all_tokens_one_by_one(name):
    model = MODELS[name]()
    read: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and len(module.weight) == VOCABULARY:
            module.register_forward_hook(lambda module, inputs, output: read.append(tuple(inputs[0].shape)))
    causal = name == "mixtral"
    run_once(model, Workload(2, 9))
    assert read == [(2, 9), *[(2, 1)] * (not causal)]
    read.clear()
    run_once(model, Workload(3, 9, 4))
    # What is written last is not read; a causal model writes first behind its prompt, a decoder behind its start.
    assert read == [(3, 9), *[(3, 1)] * (3 if causal else 4)]


class Plain(torch.nn.Linear):
    """Knows its device, as models of transformers do."""

    device = torch.device("cpu")


def test_peak_memory_is_that_of_weights_and_of_what_runs():
    model = Plain(1000, 1000)
    memory = PeakMemory(model)
    taken = 40_000_000
    idle, busy = memory.of(lambda: None), memory.of(lambda: torch.ones(taken // 4).sum())
    weights = 4 * 1001 * 1000
    assert weights <= idle < weights + taken // 4
    assert busy - idle == pytest.approx(taken, rel=0.1)
