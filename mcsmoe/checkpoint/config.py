"""The config.json of a checkpoint: read, checked against absurd sizes, and put right about the dtype of the weights."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mcsmoe.errors import CheckpointError

LIMITS = {
    r"layers?$": 1_000,
    r"experts$": 10_000,
    r"(size|dim|heads|d_model|d_ff|d_kv|rank|width|groups?)$": 2**24,
    r"(positions|position_embeddings|sequence_length)$": 2**31,
}
"""Pattern of a field's name → the most that it may count. Building a model of 2⁶³ layers would never end."""
KINDS: dict[str, type] = {"model_type": str, "text_config": dict}
"""Fields by which a configuration is looked up → their type."""
KIND_NAMES: dict[type, str] = {str: "string", dict: "object"}
DTYPE_FIELDS = ("torch_dtype", "dtype")
"""Fields that hold the dtype of the weights, the older one first."""


def read_json(path: Path) -> Any:
    """The contents of a JSON file of a checkpoint. Raises `CheckpointError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name}; is it a checkpoint directory?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy the file again") from None


def read_config(directory: Path) -> dict[str, Any]:
    """The config.json of a checkpoint directory.

    Raises `CheckpointError` if it is missing, damaged or no JSON object, and for a field that exceeds its limit.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; give the path of a saved checkpoint")
    path = directory / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object; copy the file again")
    for name, kind in KINDS.items():
        if name in config and not isinstance(config[name], kind):
            raise CheckpointError(f"{path}: {name} = {config[name]!r:.80}: must be a JSON {KIND_NAMES[kind]}")
    for name, value in _integers(config):
        limit = next((limit for pattern, limit in LIMITS.items() if re.search(pattern, name)), value)
        if value > limit:
            raise CheckpointError(f"{path}: {name} = {value} is absurd: at most {limit:,} are taken")
    return config


def _integers(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of all integer fields, those of nested objects included."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _integers(value)
        elif isinstance(value, int):
            yield name, value


def precision(held: Iterable[tuple[torch.dtype, int]], configured: torch.dtype | None) -> torch.dtype | None:
    """The dtype in which most values are stored, of (dtype, number of values) by tensor; None without floating ones.

    A model may hold a few tensors in float32 on purpose. If two dtypes hold equally many, the configured one counts.
    """
    counts: Counter[torch.dtype] = Counter()
    for dtype, elements in held:
        if dtype.is_floating_point:
            counts[dtype] += elements
    return max(counts, key=lambda dtype: (counts[dtype], dtype == configured), default=None)


def configured_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype that a config.json names; None if it names none."""
    named = next((str(config[field]) for field in DTYPE_FIELDS if config.get(field)), "")
    found = getattr(torch, named.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


def with_dtype(config: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """A config.json that names `dtype`; unchanged if it does, if `dtype` is None, and if it leaves out float32."""
    values, named = dict(config), configured_dtype(config)
    if dtype is None or dtype == (named or torch.float32):
        return values
    fields = [field for field in DTYPE_FIELDS if field in values] or ["dtype"]
    return values | dict.fromkeys(fields, str(dtype).removeprefix("torch."))
