from dataclasses import replace

import torch

from mcsmoe.calibration.statistics import LayerStatistics
from mcsmoe.families import family_of
from mcsmoe.similarity.evidence import Evidence, similarity
from tests.models import tiny_switch
from tests.similarity.evidence import InMemory


def test_the_draw_follows_seed_and_layer():
    model = tiny_switch()
    first, second = (
        Evidence(layer, LayerStatistics.zeros(layer.experts, layer.d_model), InMemory(model))
        for layer in family_of(model.config).layers(model.config)[:2]
    )
    draw = similarity("random")
    assert torch.equal(draw(first), draw(first))
    assert not torch.equal(draw(first), draw(second))
    assert not torch.equal(draw(first), draw(replace(first, seed=1)))


def test_pairs_are_spread_evenly():
    layer = replace(family_of(tiny_switch().config).layers(tiny_switch().config)[0], experts=64)
    s = similarity("random")(Evidence(layer, LayerStatistics.zeros(64, 2), InMemory(None)))
    pairs = s[tuple(torch.triu_indices(64, 64, 1))]
    quarters = torch.histc(pairs, 4, 0, 1) / len(pairs)
    assert ((quarters - 0.25).abs() < 0.05).all()
