"""Answers written by the model itself: greedy decoding, nothing of the target is seen."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from mcsmoe.tasks.batches import in_order
from mcsmoe.tasks.task import Encoded


@torch.no_grad()
def generate(model: Any, tokenizer: Any, rows: Sequence[Encoded], batch_size: int, max_new_tokens: int) -> list[str]:
    """Texts generated for `rows`, in their order, with special tokens removed.

    Sources are batched by length, so that little of the work is padding; padding stands on the right, behind
    every real token, because stock routers let padded positions use up capacity.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))  # stable: ties stay in order
    batches = in_order([rows[i] for i in order], tokenizer.pad_token_id, batch_size)
    total = -(-len(rows) // batch_size)
    texts: list[str] = []
    for batch in tqdm(batches, "generate", total, mininterval=0.5 if sys.stderr.isatty() else 15):
        written = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        texts += tokenizer.batch_decode(written, skip_special_tokens=True)
    in_place = dict(zip(order, texts, strict=True))
    return [in_place[i] for i in range(len(rows))]
