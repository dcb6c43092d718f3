"""Tasks on running text: language modelling, and span corruption as in T5's and Switch Transformers' pre-training."""

from collections.abc import Iterator, Sequence
from itertools import chain, takewhile
from typing import Any

import numpy as np

from mcsmoe.errors import DataError, ParameterError
from mcsmoe.params import TaskSection
from mcsmoe.tasks.reading import read_passages
from mcsmoe.tasks.score import Score
from mcsmoe.tasks.task import PASSAGES, TASKS, Encoded, Example, Prediction, Source, Split


class LanguageModelling:
    """Perplexity per token of running text, in blocks of `max_source_length` tokens.

    A block's first token is the source and the rest is the target, so `max_target_length` does not matter. Each
    token is predicted from the true tokens before it in its block; text before the block is not seen.
    """

    metric = "perplexity"
    higher_is_better = False
    generates = False
    chooses = False
    source = PASSAGES
    lengths = (512, 1)

    def examples(self, settings: TaskSection, split: Split) -> list[Example]:
        """Return one example per passage, with its text as both source and target; `encode` packs them into blocks."""
        return read_passages(settings, self.source, split)

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskSection, seed: int) -> list[Encoded]:
        """Join all passages in order, with the end token between them, and cut them into blocks; `seed` is not used.

        The last block may be shorter; it is left out if it is a single token, with nothing to predict. Raises
        `ParameterError` if `max_source_length` is below 2, `DataError` if the text has fewer than two tokens.
        """
        length = settings.max_source_length
        if length < 2:
            raise ParameterError("max_source_length", length, "must be at least 2: a token and one to predict")
        passages = tokenizer([e.source for e in examples], add_special_tokens=False)["input_ids"]
        ids = list(chain.from_iterable([*passage, tokenizer.eos_token_id] for passage in passages))[:-1]
        if len(ids) < 2:
            raise DataError(f"{_place(settings)}: there are no two tokens in {len(examples)} passages")
        blocks = [ids[start : start + length] for start in range(0, len(ids), length)]
        return [Encoded(block[:1], block[1:]) for block in blocks if len(block) > 1]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """There is nothing to compare texts for."""
        raise NotImplementedError("language modelling is scored on target tokens, not on generated text")


TASKS.register("lm")(LanguageModelling())


class WikiText2(LanguageModelling):
    """Perplexity per token of the test set, in blocks of `max_source_length` tokens."""

    source = Source(("text",), "Salesforce/wikitext", "wikitext-2-raw-v1", splits={"train": "train", "test": "test"})


TASKS.register("wikitext2")(WikiText2())


NOISE = 0.15
MEAN_SPAN = 3.0
SHORTEST = 9
"""Tokens of the shortest block that a span is taken out of."""


class Denoise:
    """Cross-entropy and accuracy per target token of corrupted running text, the true prefix being given."""

    metric = "cross_entropy"
    higher_is_better = False
    generates = False
    chooses = False
    source = PASSAGES
    lengths = (512, 128)

    def examples(self, settings: TaskSection, split: Split) -> list[Example]:
        """Return one example per passage, with its text as both source and target; `encode` draws the spans."""
        return read_passages(settings, self.source, split)

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskSection, seed: int) -> list[Encoded]:
        """Cut each passage into blocks and take out spans drawn with `seed`.

        A block is the longest whose corrupted source fits into `max_source_length`; a rest of less than `SHORTEST`
        tokens is left out. Raises `ParameterError` if a block's target is longer than `max_target_length`, `DataError`
        if no passage is long enough, or the tokenizer has no tokens to stand for spans.
        """
        if settings.max_source_length <= SHORTEST:
            raise ParameterError("max_source_length", settings.max_source_length, f"must be above {SHORTEST}")
        length = _block_length(settings.max_source_length)
        noise, spans = _budget(length)
        if noise + spans + 1 > settings.max_target_length:
            raise ParameterError(
                "max_target_length",
                settings.max_target_length,
                f"must be at least {noise + spans + 1} for `max_source_length` = {settings.max_source_length}",
            )
        ids = tokenizer([e.source for e in examples], add_special_tokens=False)["input_ids"]
        rng = np.random.default_rng(seed)
        blocks = [np.array(i[s : s + length]) for i in ids for s in range(0, len(i), length) if len(i) - s >= SHORTEST]
        if not blocks:
            raise DataError(f"{_place(settings)}: none of {len(examples)} passages has {SHORTEST} tokens")
        sentinels = _sentinels(tokenizer, max(_budget(len(block))[1] for block in blocks))
        return [corrupt(block, sentinels, tokenizer.eos_token_id, rng) for block in blocks]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """There is nothing to compare texts for."""
        raise NotImplementedError("span corruption is scored on target tokens, not on generated text")


def _place(settings: TaskSection) -> str:
    return settings.data or settings.hub or "text"


def longest_source(tokenizer: Any, most: int) -> int:
    """The most tokens, at most `most`, of a corrupted source for whose spans a tokenizer has enough sentinels."""
    known = len(_known_sentinels(tokenizer, most))
    fitting = (length for length in range(most, SHORTEST, -1) if _budget(_block_length(length))[1] <= known)
    return next(fitting, most)


def _known_sentinels(tokenizer: Any, count: int) -> list[int]:
    """Ids of `<extra_id_0>` and so on, up to the first that the tokenizer has not; at most `count`."""
    ids = tokenizer.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(count)])
    return list(takewhile(lambda found: found not in (None, tokenizer.unk_token_id), ids))


def _sentinels(tokenizer: Any, count: int) -> np.ndarray:
    """Ids [count] of `<extra_id_0>` and so on, one for each span of a block."""
    known = _known_sentinels(tokenizer, count)
    if len(known) < count:
        missing = f"<extra_id_{len(known)}>"
        raise DataError(f"the tokenizer has no {missing}: a block has up to {count} spans, and each needs one")
    return np.array(known)


def corrupt(block: np.ndarray, sentinels: np.ndarray, end: int, rng: np.random.Generator) -> Encoded:
    """Take spans out of one block [L] of ids; the first token always stays.

    With `x y` and `z` taken out, the block `a b x y c z` becomes source `a b <extra_id_0> c <extra_id_1> </s>` and
    target `<extra_id_0> x y <extra_id_1> z </s>`.
    """
    noise, spans = _budget(len(block))
    kept_lengths = _segment(len(block) - noise, spans, rng)
    noise_lengths = _segment(noise, spans, rng)
    source: list[int] = []
    target: list[int] = []
    start = 0
    for kept, hidden, sentinel in zip(kept_lengths, noise_lengths, sentinels.tolist()):
        source += [*block[start : start + kept].tolist(), sentinel]
        target += [sentinel, *block[start + kept : start + kept + hidden].tolist()]
        start += kept + hidden
    return Encoded([*source, end], [*target, end])


def _budget(length: int) -> tuple[int, int]:
    """How many tokens are taken out of a block, and in how many spans."""
    noise = max(1, round(length * NOISE))
    return noise, max(1, round(noise / MEAN_SPAN))


def _segment(total: int, parts: int, rng: np.random.Generator) -> Iterator[int]:
    """Lengths of `parts` non-empty pieces that add up to `total`; all divisions are equally likely."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return iter(np.diff(np.concatenate(([0], cuts, [total]))).tolist())


def _block_length(max_source: int) -> int:
    """Length of the longest block whose corrupted source, with its end token, has at most `max_source` tokens."""
    length = max_source
    while True:
        noise, spans = _budget(length + 1)
        if length + 1 - noise + spans + 1 > max_source:
            return length
        length += 1


TASKS.register("denoise")(Denoise())
