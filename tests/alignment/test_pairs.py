"""Matching of several experts with one."""

import pytest
import torch

from mcsmoe.alignment import pairs
from mcsmoe.alignment.matching import length, match, weight_similarity
from mcsmoe.alignment.pairs import matched_by_weight
from tests.alignment.experts import GATED, InMemory
from tests.merging.members import make_layer, random_experts


@pytest.mark.parametrize(("threads", "ahead"), [(1, 2**30), (3, 2**30), (3, 1)], ids=["one", "three", "no memory"])
def test_matches_are_those_of_each_pair_in_order(threads: int, ahead: int, monkeypatch: pytest.MonkeyPatch):
    experts, layer = random_experts(GATED, 6), make_layer(GATED, experts=6)
    monkeypatch.setattr(pairs, "AHEAD_BYTES", ahead)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found = list(matched_by_weight(InMemory(experts, layer), layer, 2, [5, 0, 1, 4, 3]))
    assert [e for e, _ in found] == [5, 0, 1, 4, 3]
    for e, ours in found:
        scale = length(experts[2], GATED) * length(experts[e], GATED)
        alone = match(weight_similarity(experts[2], experts[e], GATED), scale)
        assert torch.equal(ours.perm, alone.perm)
        assert (ours.before, ours.after) == (alone.before, alone.after)
