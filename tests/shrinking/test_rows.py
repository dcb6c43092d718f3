"""Rows for comparing experts and rows held out: equal shares of each kind, and no text in both."""

from pathlib import Path

import pytest

from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.errors import DataError
from mcsmoe.shrinking.rows import HELD_OUT, RowSampling, draw_rows
from tests.shrinking.place import CODE, PROSE


@pytest.mark.parametrize("causal", [True, False])
def test_every_kind_has_its_share_and_no_text_is_in_both(place: Path, causal: bool):
    tokenizer = load_tokenizer(place / ("mixtral" if causal else "switch"))
    texts = {"code": iter(CODE * 9), "prose": iter(PROSE * 9)}
    rows = draw_rows(texts, tokenizer, samples=20, length=16, seed=0, causal=causal)
    assert len(rows.calibration) == 20
    assert [rows.kinds.count(kind) for kind in texts] == [HELD_OUT // 2] * 2
    assert all(2 <= len(row.source) + len(row.target) <= (16 if causal else 32) for row in rows.calibration)


def test_numbered_texts_go_to_one_side_only(place: Path):
    tokenizer = load_tokenizer(place / "mixtral")
    known = [word for word in tokenizer.get_vocab() if not word.startswith("<")][:40]
    texts = [" ".join([word] * 16) for word in known]
    rows = draw_rows({"words": iter(texts)}, tokenizer, samples=8, length=16, seed=0, causal=True)
    sides = [{i for row in side for i in [*row.source, *row.target]} for side in (rows.calibration, rows.held_out)]
    assert sides[0] & sides[1] <= {tokenizer.eos_token_id}


def test_little_text_is_shared_out(place: Path):
    tokenizer = load_tokenizer(place / "mixtral")
    rows = draw_rows({"prose": iter(PROSE[:20])}, tokenizer, samples=128, length=16, seed=0, causal=True)
    assert rows.calibration
    assert rows.held_out
    assert len(rows.calibration) > len(rows.held_out)
    with pytest.raises(DataError, match="too little text"):
        draw_rows({"prose": iter(PROSE[:1])}, tokenizer, samples=4, length=8, seed=0, causal=True)
    with pytest.raises(DataError, match="too little text"):
        draw_rows({"prose": iter([" ", ""])}, tokenizer, samples=4, length=8, seed=0, causal=True)


def test_the_rows_are_those_of_the_seed(place: Path):
    tokenizer = load_tokenizer(place / "mixtral")

    def drawn(seed: int) -> str:
        texts = {"prose": iter(PROSE * 3)}
        return draw_rows(texts, tokenizer, samples=8, length=16, seed=seed, causal=True).fingerprint

    assert drawn(0) == drawn(0) != drawn(1)
    rows = draw_rows({"prose": iter(PROSE * 3)}, tokenizer, samples=8, length=16, seed=0, causal=True)
    sampling = RowSampling(rows.calibration, batch_size=4, seed=0)
    assert (sampling.samples, sampling.positions) == (8, 16)
    assert sampling.draw(tokenizer).rows == rows.calibration
