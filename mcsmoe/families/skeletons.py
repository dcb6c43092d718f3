"""Models without memory for weights: for looking up names, shapes and classes, or to be filled tensor by tensor."""

import json
from functools import lru_cache
from typing import Any

import torch

from mcsmoe.families.configs import configuration, values_of
from mcsmoe.families.family import auto_class

UNSHAPED = ("architectures", "auto_map", "transformers_version", "_name_or_path")
"""Fields of a configuration that have no influence on the model's modules and shapes."""


def skeleton(config: Any) -> Any:
    """A read-only model of a configuration (object or config.json dict, stock or merged), without weights.

    Equal configurations share one object, so never change it. All tensors are on the meta device, tied as in the real
    model, in the dtype that the configuration names (float32 if it names none).
    """
    shaping = {name: value for name, value in values_of(config).items() if name not in UNSHAPED}
    return _skeleton(json.dumps(shaping, sort_keys=True))


@lru_cache(maxsize=8)
def _skeleton(values: str) -> Any:
    config = configuration(json.loads(values))
    with torch.device("meta"):
        return _auto_class(config).from_config(config, dtype=config.dtype or torch.float32)


def empty_model(config: Any, dtype: torch.dtype | None = None, model_class: Any = None) -> Any:
    """A new model of a configuration object whose parameters are still on the meta device, to be filled.

    Buffers are in memory with the values that the configuration determines, such as rotary frequencies. `dtype`
    defaults to the configuration's (float32 if it names none), `model_class` to the choice of the Auto class.
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

    return getattr(transformers, auto_class(config))
