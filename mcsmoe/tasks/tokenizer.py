"""A tokenizer trained on the task's text, for a model that starts from random weights."""

from collections.abc import Iterable
from typing import Any

from mcsmoe.params import TokenizerSection

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SENTINELS = [f"<extra_id_{i}>" for i in range(32)]
"""Masks of span corruption, named as in T5."""


def train_tokenizer(texts: Iterable[str], settings: TokenizerSection, *, causal: bool = False) -> Any:
    """Train a fast tokenizer whose ids 0, 1, 2 are pad, end and unknown, as in T5.

    `word` splits at white space; `bpe` is byte-level and loses nothing. The end token is appended to each text, as
    in T5, except for a `causal` model, which must go on where a prompt stops.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, END, UNKNOWN, *SENTINELS]
    if settings.kind == "word":
        core = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer: Any = trainers.WordLevelTrainer(vocab_size=settings.vocab_size, special_tokens=special)
    else:
        core = Tokenizer(models.BPE(unk_token=UNKNOWN))
        core.pre_tokenizer = pre_tokenizers.ByteLevel()
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    core.train_from_iterator(texts, trainer)
    if not causal:
        core.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=SENTINELS,
    )
