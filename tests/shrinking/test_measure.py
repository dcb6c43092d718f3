"""Figures of `shrink` against those of plain forward passes of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import mcsmoe
from mcsmoe.calibration.memory import Batches, scoring_needs
from mcsmoe.checkpoint.load import load_model
from mcsmoe.model import Model
from mcsmoe.shrinking import measure
from mcsmoe.shrinking.measure import equal_share, predictions, prompts, relative_change
from mcsmoe.shrinking.rows import Rows, rows_for


@pytest.fixture
def rows(place: Path) -> Rows:
    model = Model(place / "mixtral")
    return rows_for(model.config, model.tokenizer, "text", samples=8)


@torch.no_grad()
def plain(directory: str, rows: Rows) -> tuple[Tensor, list[float], list[Tensor]]:
    """Most likely next tokens, loss of each row, and the input of the second block at the first position of each."""
    model: Any = load_model(Path(directory))
    chosen, losses, states = [], [], []
    for row in rows.held_out:
        ids = torch.tensor([[*row.source, *row.target]])
        found = model(input_ids=ids[:, :-1], output_hidden_states=True)
        chosen.append(found.logits[0].argmax(-1))
        losses.append(float(F.cross_entropy(found.logits[0], ids[0, 1:], reduction="sum")))
        states.append(found.hidden_states[1][0, 0])
    return torch.cat(chosen), losses, states


def test_they_are_what_plain_forward_passes_give(rows: Rows, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "CHUNK", 5)  # rows have more positions
    mcsmoe.shrink("mixtral", "out", experts=2, text="text", samples=8)
    full, merged = (predictions(Model(Path(name)), rows.held_out) for name in ("mixtral", "out"))
    (one, losses, before), (other, _, after) = plain("mixtral", rows), plain("out", rows)
    assert torch.equal(full.next_tokens, one)
    assert equal_share(full, merged) == pytest.approx(float((one == other).double().mean()))
    assert 0 < equal_share(full, merged) < 1
    assert full.losses.tolist() == pytest.approx(losses, rel=1e-5)
    assert full.tokens.tolist() == [len(row.target) for row in rows.held_out]
    # Rows are shorter than the step, so that the first position alone is kept of the first few.
    h, changed = (torch.stack(each[: measure.STATES_ROWS]) for each in (before, after))
    expected = float((changed - h).norm() / h.norm())
    assert relative_change(full, merged)["model.layers.0"] == pytest.approx(expected, rel=1e-4)
    assert expected > 0


def test_streamed_they_have_the_same_bits(rows: Rows):
    whole = predictions(Model(Path("mixtral")), rows.held_out)
    longest = max(len(row.source) + len(row.target) for row in rows.held_out)
    needs = scoring_needs(Model(Path("mixtral")).config, Batches(1, 1, longest))
    assert needs.streamed < needs.whole
    streamed = predictions(Model(Path("mixtral"), needs.streamed), rows.held_out)
    assert torch.equal(whole.losses, streamed.losses)
    assert torch.equal(whole.next_tokens, streamed.next_tokens)
    assert whole.texts == streamed.texts
    assert all(torch.equal(value, streamed.states[name]) for name, value in whole.states.items())


def test_prompts_are_beginnings_of_rows_far_apart(rows: Rows):
    chosen = prompts(rows.held_out, causal=True)
    assert len({len(each.source) for each in chosen}) == 1
    starts = [[*row.source, *row.target][: len(chosen[0].source)] for row in rows.held_out]
    places = [starts.index(each.source) for each in chosen]
    assert places[-1] >= len(rows.held_out) // 2
