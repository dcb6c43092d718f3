"""Models without memory for weights: names, shapes and classes are asked of them, and weights put in one by one."""

import json
from functools import lru_cache
from typing import Any

import torch

from mcsmoe.families.configs import configuration, values_of
from mcsmoe.families.family import family_of

UNSHAPED = ("architectures", "auto_map", "transformers_version", "_name_or_path")
"""Fields of a configuration that say nothing of what the model is made of."""


def skeleton(config: Any) -> Any:
    """The model of a configuration (object or config.json, stock or merged), to be looked at, never to be changed.

    Equal configurations share one object. All its tensors are on torch's meta device, in the configuration's
    precision (float32 where it names none), tied as in the model.
    """
    shaping = {name: value for name, value in values_of(config).items() if name not in UNSHAPED}
    return _skeleton(json.dumps(shaping, sort_keys=True))


@lru_cache(maxsize=8)
def _skeleton(values: str) -> Any:
    config = configuration(json.loads(values))
    with torch.device("meta"):
        return _auto_class(config).from_config(config, dtype=config.dtype or torch.float32)


def empty_model(config: Any, dtype: torch.dtype | None = None, model_class: Any = None) -> Any:
    """A new model of a configuration object, to be filled: weights have no memory.

    Buffers have, and hold what is computed from the configuration (frequencies of rotary embeddings).
    `model_class` is by default the one that transformers' Auto classes choose.
    """
    from accelerate import init_empty_weights

    dtype = dtype or config.dtype or torch.float32
    with init_empty_weights(include_buffers=False):
        if model_class is not None:
            return model_class._from_config(config, dtype=dtype)
        return _auto_class(config).from_config(config, dtype=dtype)


def _auto_class(config: Any) -> Any:
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the classes that are ours

    return getattr(transformers, family_of(config).auto_class)
