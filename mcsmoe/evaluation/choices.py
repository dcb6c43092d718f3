"""How likely a model finds each of an example's choices as its answer."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mcsmoe.evaluation.likelihood import likelihood
from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.batches import is_causal
from mcsmoe.tasks.task import Encoded, Example, Task


def choice_likelihoods(
    model: Any,
    tokenizer: Any,
    task: Task,
    settings: TaskParams,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
) -> list[tuple[float, ...]]:
    """Natural logarithm of p(choice | source) for all choices of each example; which one is right is not looked at.

    No choice is cut. Its end counts for an encoder-decoder, whose targets all have one, so that a choice that
    begins another one does not win by being shorter; it does not for a causal model, which may never have been
    taught to stop behind an answer.
    """
    whole = settings.model_copy(update={"max_target_length": sys.maxsize})
    asked = [replace(example, target=choice) for example in examples for choice in example.choices]
    rows = task.encode(tokenizer, asked, whole, seed)
    if is_causal(model):
        rows = [Encoded(row.source, row.target[:-1]) for row in rows]
    found = iter((-likelihood(model, rows, tokenizer.pad_token_id, batch_size, show=True).losses).tolist())
    return [tuple(next(found) for _ in example.choices) for example in examples]
