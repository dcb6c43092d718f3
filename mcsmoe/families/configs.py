"""Configurations, as objects or as the dict of a config.json, stock or merged: what they name and how they are read."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.model_types import INSIDE, MERGED

OF_ALL = ("dtype", "quantization_config")
"""What a configuration says of all its parts."""


def values_of(config: Any) -> dict[str, Any]:
    """A configuration as a dict, of which the first level may be changed."""
    return dict(config) if isinstance(config, Mapping) else config.to_dict()


def model_type_of(config: Any) -> str:
    """What a configuration calls its kind of model."""
    return str(config.get("model_type") if isinstance(config, Mapping) else config.model_type)


def merged_layers(config: Any) -> Mapping[str, Any] | None:
    """What a merged model's configuration says of its sparse layers, by name; None for a stock one.

    The field `moe_layers` alone does not tell: some stock classes have one of that name.
    """
    if not model_type_of(config).startswith(MERGED):
        return None
    described: Mapping[str, Any] = (config if isinstance(config, Mapping) else vars(config)).get("moe_layers") or {}
    return described


def configuration(values: Mapping[str, Any]) -> Any:
    """The object that loading a checkpoint with this config.json would give.

    Raises `KeyError` for a model type that neither transformers nor this package has.
    """
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the classes that are ours

    kind = transformers.CONFIG_MAPPING[values["model_type"]]
    # JSON has no infinity: transformers writes it as an object.
    return kind.from_dict(kind._decode_special_floats(dict(values)))


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
