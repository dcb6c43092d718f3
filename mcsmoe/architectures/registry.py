"""Families by `model_type`."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.architectures.layer import Family, MoELayer
from mcsmoe.errors import CheckpointError
from mcsmoe.families import MERGED, REFUSED
from mcsmoe.registry import Registry

FAMILIES: Registry[Family] = Registry("model type", "mcsmoe.architectures")


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
