"""The page of a model that was made smaller."""

import re
from dataclasses import replace

import pytest

from mcsmoe.grouping.plan import Group
from mcsmoe.report.shrunk import Continuation, Estimate, KindLoss, Shrunk, line, shrunk_page
from tests.report import large
from tests.report.page import FREQUENCY, HOSTILE, plan
from tests.report.test_page import Reader

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


@pytest.fixture(scope="module")
def read() -> Reader:
    return Reader(shrunk_page(SMALL))


def test_the_summary(read: Reader):
    # Layers differ, so experts are counted over both.
    assert "made/up-8x7B: 6 of 8 experts, 51 % of the bytes" in read.text
    assert "47.60 GB instead of 93.40 GB" in read.text
    assert "95 % interval 7.20 to 7.60" in read.text
    assert "81.0 %" in read.text
    assert "64 of 128 experts" in shrunk_page(large_shrunk())


def test_every_section_is_there_and_every_element_closed(read: Reader):
    sections = [values["id"] for tag, values in read.elements if tag == "section"]
    assert sections == ["quality", "use", "continuations", "settings"]
    assert read.open == []
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in read.elements}


def test_the_kind_that_suffers_most_comes_first(read: Reader):
    assert read.text.index("code") < read.text.index("prose")
    assert re.search(r"code\s*30,000\s*1\.1000\s*1\.5000\s*\+0\.4000", read.text)


def test_the_block_and_the_layer_that_change_most_are_named(read: Reader):
    assert re.search(r"largest after\s+1: .* is 3\.4 % of", read.text)
    assert "encoder.1 moves the most: 5.0 % of its tokens" in read.text


def test_what_was_not_measured_is_left_out():
    html = shrunk_page(replace(SMALL, agreement=None, by_block={}, by_kind={}, continuations=[]))
    for part in ("another group", "hidden states", "kind of text", "side by side"):
        assert part not in html
    assert Reader(html).open == []


def test_all_text_is_escaped():
    hostile = replace(
        SMALL,
        source=HOSTILE,
        recipe=HOSTILE,
        format=HOSTILE,
        by_kind={HOSTILE: KindLoss(1.0, 2.0, 3)},
        by_block={HOSTILE: 0.1},
        agreement={HOSTILE: 0.9},
        continuations=[Continuation(HOSTILE, HOSTILE, HOSTILE)],
        settings={HOSTILE: HOSTILE},
    )
    html = shrunk_page(hostile)
    assert "<img" not in html
    assert not [values for _, values in Reader(html).elements if "onerror" in values]


def test_the_same_bytes_each_time_and_few_of_them():
    html = shrunk_page(large_shrunk())
    assert html == shrunk_page(large_shrunk())
    assert len(html.encode()) < 300_000


def test_the_line_shows_percent():
    (axes,) = line({"0": 0.25, "1": 0.5}, "title", "unit", "#000000").axes
    assert axes.lines[0].get_ydata().tolist() == [25.0, 50.0]
