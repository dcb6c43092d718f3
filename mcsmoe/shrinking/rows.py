"""Rows for one run: those that experts are compared on, and those held out for measuring, by kind of text."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mcsmoe.calibration.sample import Sample, TextSampling
from mcsmoe.errors import DataError
from mcsmoe.families import positions
from mcsmoe.shrinking.texts import Texts, read_texts
from mcsmoe.tasks.passages import longest_source
from mcsmoe.tasks.task import Encoded

LENGTH = 1024
"""Tokens of a row, unless the model takes fewer."""
HELD_OUT = 32
"""Rows that models are measured on, all kinds of text together."""


@dataclass(frozen=True)
class Rows:
    """Calibration rows, and held-out rows with the kind of text of each. No text has rows in both."""

    calibration: list[Encoded]
    held_out: list[Encoded]
    kinds: list[str]

    @property
    def fingerprint(self) -> str:
        """Hash of all token ids."""
        return Sample.of([*self.calibration, *self.held_out]).fingerprint

    @property
    def tokens(self) -> int:
        """Tokens of the calibration rows."""
        return sum(len(row.source) + len(row.target) for row in self.calibration)


def rows_for(config: Any, tokenizer: Any, text: str | None, samples: int, seed: int = 0) -> Rows:
    """Draw rows of the text that `text` names (see `read_texts`) for the model of a configuration.

    Raises what `read_texts` and `draw_rows` raise.
    """
    length, causal = min(LENGTH, positions(config)), not config.is_encoder_decoder
    length = length if causal else longest_source(tokenizer, length)
    texts = read_texts(text, seed, tokenizer)
    return draw_rows(texts, tokenizer, samples=samples, length=length, seed=seed, causal=causal)


def draw_rows(texts: Texts, tokenizer: Any, *, samples: int, length: int, seed: int, causal: bool) -> Rows:
    """Draw `samples` calibration rows and `HELD_OUT` others of `length` tokens, equally many of each kind of text.

    If there is less text than that, both get their share of it. Raises `DataError` if the text is too short for a row
    of each, and what reading the texts raises.
    """
    calibration: list[Encoded] = []
    held_out: list[tuple[Encoded, str]] = []
    for i, (kind, found) in enumerate(texts.items()):
        wanted, kept = _share(samples, len(texts), i), _share(HELD_OUT, len(texts), i)

        def rows(part: Sequence[str], count: int) -> Sequence[Encoded]:
            sampling = TextSampling(part, count, length, batch_size=1, seed=seed, causal=causal)
            return sampling.draw(tokenizer).rows if part and count else []

        first, rest = _split(found, tokenizer, kept * length, wanted * length)
        held_out += [(row, kind) for row in rows(first, kept)]
        calibration += rows(rest, wanted)
    if not calibration or not held_out:
        raise DataError("there is too little text: one to compare experts on and another to measure are needed")
    random.Random(seed).shuffle(calibration)  # so that every batch has all kinds
    return Rows(calibration, [row for row, _ in held_out], [kind for _, kind in held_out])


def _share(total: int, parts: int, i: int) -> int:
    return total // parts + (i < total % parts)


def _split(texts: Iterator[str], tokenizer: Any, first: int, rest: int) -> tuple[list[str], list[str]]:
    """Texts with `first` tokens, and others with `rest` tokens; in that ratio if there are fewer."""
    taken: list[str] = []
    sizes: list[int] = []
    for text in texts:
        if text.strip():
            taken.append(text)
            sizes.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        # An encoder-decoder's row comes from a block longer than its source, so take more than is asked for.
        if sum(sizes) >= 2 * (first + rest):
            break
    limit = min(2 * first, sum(sizes) * first // max(1, first + rest))
    cut, seen = 0, 0
    while cut < len(sizes) - 1 and seen < max(limit, 1):
        seen += sizes[cut]
        cut += 1
    return taken[:cut], taken[cut:]


@dataclass(frozen=True)
class RowSampling:
    """A sample that is drawn already: see `mcsmoe.calibration.sample.Draw`."""

    rows: Sequence[Encoded]
    batch_size: int
    seed: int

    @property
    def samples(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    @property
    def positions(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.source) + len(row.target) for row in self.rows)

    def draw(self, tokenizer: Any) -> Sample:
        """The rows."""
        return Sample.of(self.rows)
