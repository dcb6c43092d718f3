"""Language models inside models that read more than text."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.families import INSIDE

OF_ALL = ("dtype", "quantization_config")
"""What a configuration says of all its parts."""


def language_config(config: Any) -> Any:
    """The configuration (object, or the dict of a config.json) of the language model alone; most are that already."""
    if isinstance(config, Mapping):
        return config.get("text_config", {}) if config.get("model_type") in INSIDE else config
    if config.model_type not in INSIDE:
        return config
    inside = config.get_text_config()
    for name in OF_ALL:
        if getattr(config, name, None) is not None:
            setattr(inside, name, getattr(config, name))
    return inside
