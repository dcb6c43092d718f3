"""Language modelling, which causal models were pre-trained with: running text, token after token."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from mcsmoe.errors import DataError, ParameterError
from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.reading import read_passages
from mcsmoe.tasks.score import Score
from mcsmoe.tasks.source import PASSAGES
from mcsmoe.tasks.task import TASKS, Encoded, Example, Prediction, Split


class LanguageModelling:
    """Perplexity per token of running text, in blocks of `max_source_length` tokens.

    The source of a block is its first token, the target the rest, so `max_target_length` does not matter. Of each
    token the block's true beginning is given: what stands before the block is not.
    """

    metric = "perplexity"
    higher_is_better = False
    generates = False
    chooses = False
    source = PASSAGES
    lengths = (512, 1)

    def examples(self, settings: TaskParams, split: Split) -> list[Example]:
        """One example a passage; source and target both are its text, `encode` packs passages into blocks."""
        return read_passages(settings, self.source, split)

    def encode(self, tokenizer: Any, examples: Sequence[Example], settings: TaskParams, seed: int) -> list[Encoded]:
        """All passages in their order, with the end token between them, cut into blocks; nothing is drawn at random.

        The last block may be shorter; a single token has nothing to predict and is left out. Raises
        `ParameterError` for blocks of one token, `DataError` for text without two.
        """
        length = settings.max_source_length
        if length < 2:
            raise ParameterError("task.max_source_length", length, "must be at least 2: a token and one to predict")
        passages = tokenizer([e.source for e in examples], add_special_tokens=False)["input_ids"]
        ids = list(chain.from_iterable([*passage, tokenizer.eos_token_id] for passage in passages))[:-1]
        if len(ids) < 2:
            raise DataError(f"task.data = {settings.data!r}: there are no two tokens in {len(examples)} passages")
        blocks = [ids[start : start + length] for start in range(0, len(ids), length)]
        return [Encoded(block[:1], block[1:]) for block in blocks if len(block) > 1]

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Example]) -> dict[str, Score | float]:
        """There is nothing to compare texts for."""
        raise NotImplementedError("language modelling is scored on target tokens, not on generated text")


TASKS.register("lm")(LanguageModelling())
