"""Reading configurations: transformers objects or the dict of a config.json, of stock or merged models."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.model_types import INSIDE, MERGED

OF_ALL = ("dtype", "quantization_config")
"""Fields of an outer configuration that also hold for the language model inside it."""


def values_of(config: Any) -> dict[str, Any]:
    """A configuration as a new dict: its top level may be changed, nested values are shared."""
    return dict(config) if isinstance(config, Mapping) else config.to_dict()


def model_type_of(config: Any) -> str:
    """The model type that a configuration names, such as "mixtral"."""
    return str(config.get("model_type") if isinstance(config, Mapping) else config.model_type)


def merged_layers(config: Any) -> Mapping[str, Any] | None:
    """The `moe_layers` entries of a merged model's configuration, by layer name; None for a stock configuration.

    The model type decides, because some stock classes have a field `moe_layers` too.
    """
    if not model_type_of(config).startswith(MERGED):
        return None
    described: Mapping[str, Any] = (config if isinstance(config, Mapping) else vars(config)).get("moe_layers") or {}
    return described


def configuration(values: Mapping[str, Any]) -> Any:
    """The configuration object that transformers would load from this config.json.

    Raises `KeyError` for a model type that neither transformers nor this package knows.
    """
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the classes that are ours

    kind = transformers.CONFIG_MAPPING[values["model_type"]]
    # JSON has no infinity, so transformers writes it as an object.
    return kind.from_dict(kind._decode_special_floats(dict(values)))


def language_config(config: Any) -> Any:
    """The configuration (object or config.json dict) of the language model alone; most configurations already are."""
    if isinstance(config, Mapping):
        return config.get("text_config", {}) if config.get("model_type") in INSIDE else config
    if config.model_type not in INSIDE:
        return config
    inside = config.get_text_config()
    for name in OF_ALL:
        if getattr(config, name, None) is not None:
            setattr(inside, name, getattr(config, name))
    return inside


def positions(config: Any) -> int:
    """The most tokens that a model takes; without a limit in its configuration, as many as one likes."""
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "max_sequence_length"))
    return next((value for value in found if isinstance(value, int)), 2**31)
