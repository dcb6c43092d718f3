"""What holds for every registered similarity, on a small random model."""

from pathlib import Path

import pytest
import torch

from mcsmoe.errors import CheckpointError, UnknownNameError
from mcsmoe.params import Collect
from mcsmoe.similarity.evidence import SIMILARITIES, Evidence, needs, similarity
from tests.calibration.samples import batches, exact_switch, kill, samples
from tests.similarity.evidence import bare_evidence, whole_evidence

DEAD = [5, 6]
NAMES = [*SIMILARITIES, "reverse:weight", "reverse:mse"]
AT_REST = ["feature", "feature.abs", "weight-feature", "gradient", "weight-gradient"]
"""Bases that know nothing of an expert without tokens."""


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> list[list[Evidence]]:
    """Every layer of a model with two dead experts; the sample in batches of 3, and one by one in reverse."""
    model = exact_switch()
    kill(model, *DEAD)
    parts = [batches(samples(), 3, extra=2), batches(samples()[::-1], 1)]
    return [whole_evidence(model, part, tmp_path_factory.mktemp("gradients")) for part in parts]


@pytest.mark.parametrize("name", NAMES)
def test_a_similarity_is_symmetric_between_0_and_1_with_diagonal_1(name: str, collected):
    for evidence in collected[0]:
        s = similarity(name)(evidence)
        assert s.dtype == torch.float64
        assert s.shape == (evidence.layer.experts, evidence.layer.experts)
        assert torch.equal(s, s.T)
        assert s.diagonal().tolist() == [1] * evidence.layer.experts
        assert s.min() >= 0
        assert s.max() <= 1
        assert len(s.triu(1).unique()) > 2


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_order_of_the_sample_change_nothing(name: str, collected):
    for one, other in zip(*collected):
        torch.testing.assert_close(similarity(name)(one), similarity(name)(other), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_similarity_can_be_asked_for_again(name: str, collected):
    evidence = collected[0][0]
    first = similarity(name)(evidence)
    kept = first.clone()
    first.zero_()
    assert torch.equal(similarity(name)(evidence), kept)


@pytest.mark.parametrize("name", AT_REST)
def test_a_dead_expert_is_neither_like_nor_unlike(name: str, collected):
    for evidence in collected[0]:
        assert evidence.statistics.counts[DEAD].tolist() == [0, 0]
        s = similarity(name)(evidence)[DEAD].clone()
        s[[0, 1], DEAD] = 0.5
        assert (s == 0.5).all()


@pytest.mark.parametrize("name", ["mse", "feature-correlation.lsa", "feature-correlation.max"])
def test_two_experts_without_a_token_are_neither_like_nor_unlike(name: str, collected):
    for evidence in collected[0]:
        assert similarity(name)(evidence)[5, 6] == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_collected_is_named(name: str, collected):
    bare, entry = bare_evidence(collected[0][0]), needs(name)
    if entry is None:
        assert torch.equal(similarity(name)(bare), similarity(name)(collected[0][0]))
    else:
        plain = name.removeprefix("reverse:")
        with pytest.raises(CheckpointError, match=f"^similarity '{plain}' needs '{entry}', which was not collected$"):
            similarity(name)(bare)


def test_needs_name_what_collect_knows():
    entries = sorted({entry for name in SIMILARITIES if (entry := needs(name))})
    values = {"gradient_samples": 1, "also": entries}
    assert Collect.model_validate(values).also == ["correlation", "gradients", "outputs", "pair-errors"]


def test_all_of_the_reference_and_ours():
    assert list(SIMILARITIES) == [
        "expert-output",
        "expert-output.mean",
        "feature",
        "feature-correlation.lsa",
        "feature-correlation.max",
        "feature.abs",
        "gradient",
        "mse",
        "random",
        "router-logits",
        "router-weight",
        "router-weight-feature",
        "weight",
        "weight-feature",
        "weight-gradient",
    ]


def test_reverse_turns_a_similarity_round(collected):
    evidence = collected[0][0]
    s, turned = similarity("weight")(evidence), similarity("reverse:weight")(evidence)
    off = ~torch.eye(len(s), dtype=torch.bool)
    assert torch.equal(turned[off], 1 - s[off])


def test_unknown_names(tmp_path: Path):
    for name in ("weights", "reverse:weights", "reverse:reverse:weight"):
        with pytest.raises(UnknownNameError):
            similarity(name)
