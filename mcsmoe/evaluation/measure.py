"""All figures of one checkpoint: the task's scores, and what the model costs to store and to run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mcsmoe.calibration.memory import must_stream_scoring
from mcsmoe.checkpoint.load import load_config, load_model
from mcsmoe.checkpoint.source import fetch
from mcsmoe.checkpoint.streamed import load_streamed
from mcsmoe.checkpoint.tokenizer import load_tokenizer
from mcsmoe.errors import MemoryLimitError
from mcsmoe.evaluation.cost import flops_per_token, size
from mcsmoe.evaluation.quality import Likelihood, likelihood, quality
from mcsmoe.families import FAMILIES, skeleton
from mcsmoe.model import Model
from mcsmoe.params import TaskSection
from mcsmoe.tasks.task import TASKS, Encoded

SEED = 0
"""What a task draws for its test split must not depend on the training seed."""

FLOPS_SAMPLE = 32
"""Number of test examples on which FLOPs are counted."""

DIGITS = 6


def measure(
    source: Path | str,
    settings: TaskSection,
    batch_size: int,
    limit: int | None = None,
    memory_limit: int | None = None,
    *,
    trust_remote_code: bool = False,
) -> dict[str, float]:
    """Return scores with intervals, parameters, bytes, experts and FLOPs per token of a checkpoint.

    `source` is a directory, or a hub id if it is a `str`, of any model that generates text. `limit` takes the first
    examples of the test split only. A model that does not fit into `memory_limit` bytes is streamed, with the same
    figures. `trust_remote_code` allows the tokenizer to run the code beside it.
    Raises what `load_within` raises, and `DataError` for missing data.
    """
    task = TASKS[settings.name]
    examples = task.examples(settings, "test")[:limit]
    model = load_within(source, settings, batch_size, memory_limit)
    tokenizer = load_tokenizer(source, any_family=True, trust_remote_code=trust_remote_code)
    scores = quality(model, tokenizer, task, settings, examples, batch_size, SEED, memory_limit)
    sample = task.encode(tokenizer, examples[:FLOPS_SAMPLE], settings, SEED)[:FLOPS_SAMPLE]
    flops = flops_per_token(model, sample, tokenizer.pad_token_id, memory_limit)
    rounded: dict[str, float] = {name: round(score, DIGITS) for name, score in scores.items()}
    return rounded | size(model, fetch(source)) | {"flops_per_token": round(flops)}


def load_within(source: Path | str, settings: TaskSection, batch_size: int, memory_limit: int | None) -> Any:
    """Load a model to measure it on a task: whole, or streamed if it does not fit into `memory_limit` bytes.

    It runs on a GPU if there is one. Raises `CheckpointError` as `load_model` does, and `MemoryLimitError` for a
    model that does not fit and has to generate, is of no known family, or has a block that does not fit.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if memory_limit is not None:
        config = load_config(source, any_family=True)
        positions = settings.max_source_length + settings.max_target_length
        if config.model_type not in FAMILIES:
            needed = sum(value.nbytes for value in skeleton(config).parameters())
            if needed > memory_limit:
                remedy = f"raise it: a model of type {config.model_type!r} is not read block by block"
                raise MemoryLimitError(memory_limit, "evaluate", needed, remedy)
        elif must_stream_scoring(
            memory_limit, "evaluate", config, batch_size, positions, TASKS[settings.name].generates
        ):
            return load_streamed(fetch(source), device)
    return load_model(source, any_family=True).to(device)


def rows_likelihood(model: Model, rows: Sequence[Encoded], batch_size: int = 1) -> Likelihood:
    """Measure how well a model predicts the targets of `rows`."""
    limit, longest = model.memory_limit, max(len(row.source) + len(row.target) for row in rows)
    streamed = must_stream_scoring(limit, "evaluate", model.config, batch_size, longest, generates=False)
    with model.loaded(streamed=streamed) as module:
        return likelihood(module, rows, model.tokenizer.pad_token_id, batch_size, memory_limit=limit)
