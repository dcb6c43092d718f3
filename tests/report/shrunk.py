"""A small and a large model that were made smaller."""

from dataclasses import replace

from mcsmoe.grouping.plan import Group
from mcsmoe.report.shrunk import Continuation, Estimate, KindLoss, Shrunk
from tests.report import large
from tests.report.page import FREQUENCY, plan

SMALL = Shrunk(
    source="made/up-8x7B",
    recipe="m-smoe",
    format="stock",
    bytes_before=93_400_000_000,
    bytes_after=47_600_000_000,
    perplexity_before=Estimate(6.2, 6.05, 6.35),
    perplexity_after=Estimate(7.4, 7.2, 7.6),
    equal_tokens=0.81,
    by_kind={"prose": KindLoss(1.9, 2.0, 40_000), "code": KindLoss(1.1, 1.5, 30_000)},
    by_block={"0": 0.01, "1": 0.034, "2": 0.031},
    agreement={"encoder.1": 0.95, "decoder.1": 0.99},
    continuations=[Continuation("Once upon", " a time", " the hill")],
    plan=plan("m-smoe", Group(1, (0, 1), (0.1, 0.4)), Group(2, (2, 3), (0.2, 0.3))),
    frequency=FREQUENCY,
    settings={"samples": 128, "memory limit": "24GB"},
)


def large_shrunk() -> Shrunk:
    frequency, _, plans = large.inputs()
    blocks = {str(block): 0.02 + 0.3 * (block / 48) ** 2 for block in range(48)}
    agreement = {name: 0.9 + 0.001 * layer for layer, name in enumerate(large.LAYERS)}
    return replace(SMALL, plan=plans["m-smoe"], frequency=frequency, by_block=blocks, agreement=agreement)
