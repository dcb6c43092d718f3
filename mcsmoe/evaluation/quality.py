"""A model's scores on a task, with intervals: by generated text, by likelihood of choices or of tokens."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mcsmoe.calibration.memory import LOGITS_AT_ONCE, forwards_at_once
from mcsmoe.checkpoint.lockstep import run_forwards
from mcsmoe.checkpoint.streamed import device_of
from mcsmoe.evaluation.generation import generate
from mcsmoe.params import TaskSection
from mcsmoe.tasks.batches import IGNORED, collate, is_causal, model_inputs
from mcsmoe.tasks.score import BOUNDS, Column, Score
from mcsmoe.tasks.task import Encoded, Example, Prediction, Task

DRAWS = 1000
LEVEL = 0.95
SEED = 0


def interval(score: Score, draws: int = DRAWS) -> tuple[float, float]:
    """Bootstrap percentile interval (low, high) of `score` at `LEVEL`, over `draws` resamples of its examples.

    Examples in clusters are resampled by cluster. The same score always gives the same bounds.
    """
    rng = np.random.default_rng(SEED)
    parts = _parts(score)
    found = []
    for _ in range(draws):
        drawn = rng.integers(len(parts), size=len(parts))
        index = drawn if score.clusters is None else np.concatenate([parts[i] for i in drawn])
        found.append(score.statistic(*(column[index] for column in score.columns)))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _parts(score: Score) -> list[NDArray[np.intp]]:
    """Indices of the examples of each cluster; without clusters, each example is one."""
    names = score.clusters if score.clusters is not None else range(len(score.columns[0]))
    _, codes = np.unique(np.array(names), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


@dataclass(frozen=True, repr=False)
class Likelihood:
    """Means over target tokens, and sums per row; each token is predicted from the true tokens before it."""

    cross_entropy: float
    """Nats per token."""
    accuracy: float
    """Share of tokens whose most likely prediction is right."""
    sequence_accuracy: float
    """Share of targets with every token right, which are those that greedy decoding answers correctly."""
    losses: NDArray[np.float64]
    """Cross-entropy of each row's target [N], in nats, in the order of the rows."""
    right: NDArray[np.float64]
    """Number of rightly predicted target tokens of each row [N]."""
    tokens: NDArray[np.float64]
    """Number of target tokens of each row [N]."""

    @property
    def perplexity(self) -> float:
        """exp of the cross-entropy."""
        return math.exp(self.cross_entropy)

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the perplexity: see `interval`."""
        return interval(Score((self.losses, self.tokens), _perplexity))

    def to_json(self) -> dict[str, float]:
        """The figures as plain JSON values."""
        low, high = self.interval
        bounds = {"perplexity": self.perplexity, "perplexity_low": low, "perplexity_high": high}
        means = {"cross_entropy": self.cross_entropy, "accuracy": self.accuracy, "tokens": int(self.tokens.sum())}
        return bounds | means

    def __repr__(self) -> str:
        low, high = self.interval
        return f"Likelihood(perplexity {self.perplexity:.4g} ({low:.4g}–{high:.4g}), {int(self.tokens.sum()):,} tokens)"


@torch.no_grad()
def likelihood(
    model: Any,
    rows: Sequence[Encoded],
    pad: int,
    batch_size: int,
    show: bool = False,
    memory_limit: int | None = None,
) -> Likelihood:
    """Measure `model`, whole or streamed, on `rows`, in eval mode; its mode is restored.

    Every target token has the same weight, whatever its batch; padding never counts. Sums are float64. `show` draws
    a progress bar. A streamed model is read as often as `memory_limit` bytes require, which changes no figure.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].source), len(rows[i].target)))
    training, causal, device = model.training, is_causal(model), device_of(model)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sums = [torch.empty(0)] * len(batches)

    def score(i: int) -> None:
        batch = collate([rows[row] for row in batches[i]], pad, causal=causal)
        inputs: dict[str, Any] = {name: value.to(device) for name, value in model_inputs(batch, causal).items()}
        if causal:
            inputs["use_cache"] = False  # of an encoder-decoder, the last bits of logits would differ
        sums[i] = _sums(model(**inputs).logits, batch["labels"].to(device)).cpu()

    longest = max(len(row.source) + len(row.target) for row in rows)
    model.eval()
    forwards = [partial(score, i) for i in range(len(batches))]
    run_forwards(model, forwards, "score", show, forwards_at_once(model, memory_limit, batch_size, longest))
    model.train(training)
    losses, hits, tokens = torch.cat(sums, 1)[:, np.argsort(order)].numpy()
    count = float(tokens.sum())
    means = float(losses.sum()) / count, float(hits.sum()) / count, int((hits == tokens).sum()) / len(rows)
    return Likelihood(*means, losses, hits, tokens)


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, right predictions and target tokens of each row [3, B]; logits [B, T, V], labels [B, T]."""
    real = labels != IGNORED
    nats = torch.zeros(labels.shape, dtype=torch.float64, device=labels.device)
    right = torch.zeros_like(real)
    for part in real.nonzero().split(max(1, LOGITS_AT_ONCE // logits.shape[-1])):
        place = part.unbind(1)
        scores, answers = logits[place].float(), labels[place]  # [n, V], [n]
        nats[place] = F.cross_entropy(scores, answers, reduction="none").double()
        right[place] = scores.argmax(-1) == answers
    return torch.stack([nats.sum(-1), right.sum(-1), real.sum(-1)])


def choice_likelihoods(
    model: Any,
    tokenizer: Any,
    task: Task,
    settings: TaskSection,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
    memory_limit: int | None = None,
) -> list[tuple[float, ...]]:
    """ln p(choice | source) for all choices of each example; `target` is not used. `memory_limit`: see `likelihood`.

    Choices are never cut. The end token counts for an encoder-decoder, so that "yes" does not beat "yes, often" just
    by being shorter. It does not count for a causal model, which may never have learned to stop after an answer.
    """
    whole = settings.model_copy(update={"max_target_length": sys.maxsize})
    asked = [replace(example, target=choice) for example in examples for choice in example.choices]
    rows = task.encode(tokenizer, asked, whole, seed)
    if is_causal(model):
        rows = [Encoded(row.source, row.target[:-1]) for row in rows]
    measured = likelihood(model, rows, tokenizer.pad_token_id, batch_size, True, memory_limit)
    found = iter((-measured.losses).tolist())
    return [tuple(next(found) for _ in example.choices) for example in examples]


def quality(
    model: Any,
    tokenizer: Any,
    task: Task,
    settings: TaskSection,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
    memory_limit: int | None = None,
) -> dict[str, float]:
    """Return the task's scores over `examples`, and the 95 % interval of each as `NAME_low`, `NAME_high`.

    Generated texts and likelihoods of choices are scored as the task asks, else the tokens of the targets. An invalid
    generated text counts as wrong; none is replaced or left out. The model runs in eval mode; its mode is restored.
    It may be streamed, within `memory_limit` bytes as in `likelihood`, unless the task generates.
    """
    training = model.training
    model.eval()
    try:
        if task.generates or task.chooses:
            predictions = _predict(model, tokenizer, task, settings, examples, batch_size, seed, memory_limit)
            return _flat(task.score(predictions, examples))
        rows = task.encode(tokenizer, examples, settings, seed)
        found = likelihood(model, rows, tokenizer.pad_token_id, batch_size, True, memory_limit)
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
    settings: TaskSection,
    examples: Sequence[Example],
    batch_size: int,
    seed: int,
    memory_limit: int | None,
) -> list[Prediction]:
    texts: list[str] = [""] * len(examples)
    likelihoods: list[tuple[float, ...]] = [()] * len(examples)
    if task.generates:
        rows = task.encode(tokenizer, examples, settings, seed)
        texts = generate(model, tokenizer, rows, batch_size, settings.max_target_length)
    if task.chooses:
        likelihoods = choice_likelihoods(model, tokenizer, task, settings, examples, batch_size, seed, memory_limit)
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
