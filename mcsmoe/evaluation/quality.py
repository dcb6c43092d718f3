"""A task's figures for a model, measured in the way that the task asks for."""

import math
from collections.abc import Sequence
from typing import Any

from mcsmoe.evaluation.bootstrap import interval
from mcsmoe.evaluation.choices import choice_likelihoods
from mcsmoe.evaluation.generation import generate
from mcsmoe.evaluation.likelihood import likelihood
from mcsmoe.params import Task as TaskParams
from mcsmoe.tasks.score import BOUNDS, Column, Score
from mcsmoe.tasks.task import Example, Prediction, Task


def quality(
    model: Any,
    tokenizer: Any,
    task: Task,
    settings: TaskParams,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
) -> dict[str, float]:
    """The task's figures over `examples`, and `NAME_low`, `NAME_high`: the 95 % interval of each score.

    They are of generated texts and the likelihoods of choices, as the task asks, or of the targets' tokens. A
    generated text that is no answer at all is scored as it stands, so it is wrong; none is replaced or left out.
    The model is in evaluation mode meanwhile and comes back in the mode it had.
    """
    training = model.training
    model.eval()
    try:
        if task.generates or task.chooses:
            predictions = _predict(model, tokenizer, task, settings, examples, batch_size, seed)
            return _flat(task.score(predictions, examples))
        rows = task.encode(tokenizer, examples, settings, seed)
        found = likelihood(model, rows, tokenizer.pad_token_id, batch_size, show=True)
        scores: dict[str, Score | float] = {
            "cross_entropy": Score((found.losses, found.tokens), _ratio),
            "accuracy": Score((found.right, found.tokens), _ratio),
        }
        if task.metric == "perplexity":
            scores["perplexity"] = Score((found.losses, found.tokens), _perplexity)
        return _flat(scores)
    finally:
        model.train(training)


def _predict(
    model: Any,
    tokenizer: Any,
    task: Task,
    settings: TaskParams,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
) -> list[Prediction]:
    texts: list[str] = [""] * len(examples)
    likelihoods: list[tuple[float, ...]] = [()] * len(examples)
    if task.generates:
        rows = task.encode(tokenizer, examples, settings, seed)
        texts = generate(model, tokenizer, rows, batch_size, settings.max_target_length)
    if task.chooses:
        likelihoods = choice_likelihoods(model, tokenizer, task, settings, examples, batch_size, seed)
    return [Prediction(text, values) for text, values in zip(texts, likelihoods, strict=True)]


def _flat(scores: dict[str, Score | float]) -> dict[str, float]:
    figures = {name: score.value if isinstance(score, Score) else score for name, score in scores.items()}
    for name, score in scores.items():
        if isinstance(score, Score):
            figures |= zip((name + bound for bound in BOUNDS), interval(score), strict=True)
    return figures


def _ratio(part: Column, whole: Column) -> float:
    return float(part.sum() / whole.sum())


def _perplexity(losses: Column, tokens: Column) -> float:
    return math.exp(_ratio(losses, tokens))
