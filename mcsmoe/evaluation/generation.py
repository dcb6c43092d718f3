"""Greedy generation by settings of our own; what a checkpoint's generation_config.json asks for does not count."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from mcsmoe.progress import progress
from mcsmoe.tasks.batches import collate, is_causal
from mcsmoe.tasks.task import Encoded


@torch.no_grad()
def generate(model: Any, tokenizer: Any, rows: Sequence[Encoded], batch_size: int, max_new_tokens: int) -> list[str]:
    """Generate a text for each row, greedily, without special tokens and without a causal model's prompt.

    A text ends before the first of `end_tokens`. Sources of similar length share a batch, to save padding; texts come
    in the order of `rows`.
    """
    causal, ends, pad = is_causal(model), end_tokens(model, tokenizer), tokenizer.pad_token_id
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))  # stable: ties stay in order
    starts = range(0, len(order), batch_size)
    texts: list[str] = []
    for start in progress(starts, "generate"):
        ids, mask = _sources([rows[i] for i in order[start : start + batch_size]], pad, causal)
        written = greedy(model, ids.to(model.device), mask.to(model.device), max_new_tokens, ends, pad).tolist()
        answers = [list(takewhile(lambda token: token not in ends, row)) for row in written]
        texts += tokenizer.batch_decode(answers, skip_special_tokens=True)
    in_place = dict(zip(order, texts, strict=True))
    return [in_place[i] for i in range(len(rows))]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens at which an answer ends: the tokenizer's end token, which training teaches, and the model's own.

    The model's own are those of its generation_config.json, or of its config.json if it has no such file.
    """
    own = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return found - {None}


def greedy(model: Any, ids: Tensor, mask: Tensor, new: int, ends: Collection[int] = (), pad: int = 0) -> Tensor:
    """Write at most `new` tokens after each source, always the most likely one: [B, ≤ new], without the source.

    ids, mask: [B, S]. A row that came to one of `ends` is filled up with `pad`.
    """
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    with _only(model, settings):
        written: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    return written[:, ids.shape[1] if is_causal(model) else 1 :]


@contextmanager
def _only(model: Any, settings: Any) -> Iterator[None]:
    """Put the model's own settings aside, because `generate` takes from them whatever the given ones leave open."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def _sources(rows: Sequence[Encoded], pad: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [B, S] of the sources.

    Padding is on the right, because stock routers let padded positions use up capacity. For a causal model it is on
    the left, because generation goes on where a row ends.
    """
    if not causal:
        batch = collate(rows, pad, causal=False)
        return batch["input_ids"], batch["attention_mask"]
    turned = collate([Encoded(row.source[::-1], row.target) for row in rows], pad, causal=False)
    return turned["input_ids"].flip(1), turned["attention_mask"].flip(1)
