"""Families by `model_type`, and the configurations that name them."""

from collections.abc import Mapping, Sequence
from typing import Any

from mcsmoe.errors import CheckpointError, ParameterError
from mcsmoe.families.layer import Family, MoELayer
from mcsmoe.families.names import INSIDE, MERGED, REFUSED
from mcsmoe.params import Exclude
from mcsmoe.registry import Registry

FAMILIES: Registry[Family] = Registry("model type", "mcsmoe.families")


def family_of(config: Any) -> Family:
    """The family of a configuration (object, or the dict of a config.json).

    Raises `CheckpointError` naming the model type found and those supported, or why this one is not.
    """
    found = _model_type(config)
    if found in REFUSED:
        raise CheckpointError(f"model type {found!r} is not supported: {REFUSED[found]}")
    if found not in FAMILIES:
        stock = ", ".join(name for name in FAMILIES if not name.startswith(MERGED))
        raise CheckpointError(f"model type {found!r} is not supported; supported: {stock}")
    return FAMILIES[found]


def sparse_layers(config: Any) -> list[MoELayer]:
    """The sparse layers of a configuration, in order of the forward pass."""
    return family_of(config).layers(config)


def merged_layers(config: Any) -> Mapping[str, Any] | None:
    """What a merged model's configuration says of its sparse layers, by name; None for a stock one.

    The field `moe_layers` alone does not tell: some stock classes have one of that name.
    """
    if not _model_type(config).startswith(MERGED):
        return None
    described: Mapping[str, Any] = (config if isinstance(config, Mapping) else vars(config)).get("moe_layers") or {}
    return described


def _model_type(config: Any) -> str:
    return str(config.get("model_type") if isinstance(config, Mapping) else config.model_type)


def configuration(values: Mapping[str, Any]) -> Any:
    """The object that loading a checkpoint with this config.json would give.

    Raises `KeyError` for a model type that neither transformers nor this package has.
    """
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the classes that are ours

    kind = transformers.CONFIG_MAPPING[values["model_type"]]
    # JSON has no infinity: transformers writes it as an object.
    return kind.from_dict(kind._decode_special_floats(dict(values)))


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


def excluded_layers(exclude: Exclude, layers: Sequence[MoELayer]) -> list[str]:
    """Names of the layers that stay untouched. Raises `ParameterError` for an index with no sparse layer."""
    names = []
    for stack in ("encoder", "decoder"):
        sparse = {layer.index: layer.name for layer in layers if layer.stack == stack}
        for index in getattr(exclude, stack):
            if index not in sparse:
                raise ParameterError(f"exclude.{stack}", index, f"no sparse layer; sparse are {sorted(sparse)}")
            names.append(sparse[index])
    return names
