"""The report stays small and legible for a model with many layers and many experts."""

import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from mcsmoe.grouping.plan import Group
from mcsmoe.report.figure import svg, thinned
from mcsmoe.report.groups import excerpt, expert_use, framed, similarity_groups
from mcsmoe.report.lost import lost_figure
from mcsmoe.report.use import groupings, use_rows
from tests.report.large import LAYERS, METHODS, inputs, page
from tests.report.page import FREQUENCY, plan


@pytest.fixture(scope="module")
def html() -> str:
    return page()


def test_a_large_page_is_small(html: str):
    assert len(html.encode()) < 1_500_000


def test_each_layer_of_each_method_can_be_opened_and_none_is(html: str):
    assert html.count('<details class="layer">') == len(METHODS) * len(LAYERS)
    assert '<details class="layer" open>' not in html
    assert "<script" not in html


def test_the_layer_that_loses_most_comes_first(html: str):
    shares = [float(share) for share in re.findall(r"128 → 64</span><span>([\d.]+) %</span>", html)]
    by_method = np.array(shares).reshape(len(METHODS), len(LAYERS))
    assert (np.diff(by_method, axis=1) <= 0).all()


def test_the_page_says_which_layers_are_drawn(html: str):
    _, similarity, _ = inputs()
    likest = max(LAYERS, key=lambda name: similarity[name].mean())
    assert list(excerpt(similarity)) == [LAYERS[0], likest, LAYERS[24], LAYERS[-1]]
    assert f"and {likest}, whose experts are the most similar on average" in html
    few = dict(list(similarity.items())[:8])
    assert list(excerpt(few)) == LAYERS[:8]


def test_figures_of_a_large_model_are_small():
    frequency, similarity, plans = inputs()
    assert len(svg(expert_use(frequency))) < 120_000
    assert len(svg(similarity_groups(excerpt(similarity), framed(plans["m-smoe"]), "m-smoe"))) < 400_000


def test_the_scale_of_a_large_layer_ends_at_four_times_the_mean_use():
    frequency, _, _ = inputs()
    scale = expert_use(frequency).axes[1]
    assert scale.get_ylim()[1] == pytest.approx(4 * 100 / 128)
    assert max(scale.get_yticks()) <= 4 * 100 / 128


def test_what_a_layer_loses():
    lost = plan("pruned", Group(1, (1, 2), (0.4, 0.2)), dropped=(0, 3))
    (grouping,) = groupings({"pruned": use_rows(lost, FREQUENCY)})
    pruned, whole = grouping.layers
    assert pruned.lost == pytest.approx(0.6)  # expert 2 of 0.2, dropped experts of 0.1 and 0.3
    assert grouping.lost == pytest.approx(0.3)
    assert (pruned.largest, pruned.alone) == (2, [])
    assert (whole.lost, whole.largest, len(whole.alone)) == (0, 1, 4)
    before = -sum(share * math.log2(share) for share in FREQUENCY["encoder.1"])
    assert pruned.entropy == pytest.approx((before, 0.0))  # one expert is left, whose share is then 1
    assert [layer.name for layer in grouping.by_loss] == ["encoder.1", "decoder.1"]


def test_the_most_used_expert_stands_left_in_the_colour_of_its_fate():
    figure = lost_figure({"a": [(0.1, "kept"), (0.6, "joined"), (0.3, "dropped")], "b": [(1.0, "kept")]})
    colours = np.asarray(figure.axes[0].collections[0].get_array())
    red, grey, teal = colours[0, :, :3]
    assert red[0] > red[1]
    assert teal[1] > teal[0]
    assert np.ptp(grey) < 0.2
    assert colours[1, 1:, 3].tolist() == [0, 0]  # a layer with fewer experts ends earlier
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["kept", "merged into another", "dropped"]


@pytest.mark.parametrize(("count", "step"), [(5, 1), (16, 1), (17, 2), (128, 8)])
def test_names_are_thinned_evenly(count: int, step: int):
    axes = Figure().add_subplot()
    thinned(axes.xaxis, [str(i) for i in range(count)], 16, offset=0.5)
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(i) for i in range(0, count, step)]
    assert axes.get_xticks()[0] == 0.5
