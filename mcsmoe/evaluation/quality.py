"""A task's figures for a model, measured in the way that the task asks for."""

import math
from collections.abc import Sequence
from typing import Any

from mcsmoe.evaluation.generation import generate
from mcsmoe.evaluation.likelihood import likelihood
from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.task import Example, Task


def quality(
    model: Any,
    tokenizer: Any,
    task: Task,
    settings: TaskParams,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """The task's figures over `examples`: of generated texts, or of the targets' tokens.

    A generated text that is no answer at all is scored as it stands, so it is wrong; none is replaced or left
    out. Perplexity is given where it is the task's metric. The model is in evaluation mode meanwhile and comes
    back in the mode it had.
    """
    rows = task.encode(tokenizer, examples, settings, seed)
    training = model.training
    model.eval()
    try:
        if task.generates:
            texts = generate(model, tokenizer, rows, batch_size, settings.max_target_length)
            return task.score(texts, examples)
        found = likelihood(model, rows, tokenizer.pad_token_id, batch_size, show=True)
        figures = {"cross_entropy": found.cross_entropy, "accuracy": found.accuracy}
        return figures | ({"perplexity": math.exp(found.cross_entropy)} if task.metric == "perplexity" else {})
    finally:
        model.train(training)
