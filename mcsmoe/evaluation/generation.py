"""Answers written by the model itself: greedy decoding, nothing of the target is seen."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcsmoe.progress import progress
from mcsmoe.tasks.batches import collate, is_causal
from mcsmoe.tasks.task import Encoded


@torch.no_grad()
def generate(model: Any, tokenizer: Any, rows: Sequence[Encoded], batch_size: int, max_new_tokens: int) -> list[str]:
    """Texts generated for `rows`, in their order, with special tokens removed, and without a causal model's prompt.

    Sources are batched by length, so that little of the work is padding.
    """
    causal = is_causal(model)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))  # stable: ties stay in order
    starts = range(0, len(order), batch_size)
    texts: list[str] = []
    for start in progress(starts, "generate"):
        ids, mask = _sources([rows[i] for i in order[start : start + batch_size]], tokenizer.pad_token_id, causal)
        written = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        new = written[:, ids.shape[1] :] if causal else written
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    in_place = dict(zip(order, texts, strict=True))
    return [in_place[i] for i in range(len(rows))]


def _sources(rows: Sequence[Encoded], pad: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [B, S] of the sources.

    Padding stands on the right, because stock routers let padded positions use up capacity; but on the left for
    a causal model, which writes on where a row ends.
    """
    if not causal:
        batch = collate(rows, pad, causal=False)
        return batch["input_ids"], batch["attention_mask"]
    turned = collate([Encoded(row.source[::-1], row.target) for row in rows], pad, causal=False)
    return turned["input_ids"].flip(1), turned["attention_mask"].flip(1)
