"""The page of a model that was made smaller."""

import re
from dataclasses import replace

import numpy as np
import pytest

from mcsmoe.report.shrunk import Continuation, KindLoss, line, shrunk_page
from tests.report.page import HOSTILE
from tests.report.shrunk import SMALL, large_shrunk
from tests.report.test_page import Reader


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
    assert re.search(r"largest after\s+block 1: .* is 3\.4 % of", read.text)
    assert "encoder.1 moves the most: 5.0 % of its gates" in read.text


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
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [25.0, 50.0]
