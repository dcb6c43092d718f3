"""Families by `model_type`."""

from collections.abc import Mapping
from typing import Any

from mcsmoe.architectures.layer import Family, MoELayer
from mcsmoe.errors import CheckpointError
from mcsmoe.families import MERGED
from mcsmoe.registry import Registry

FAMILIES: Registry[Family] = Registry("model type", "mcsmoe.architectures")


def family_of(config: Any) -> Family:
    """The family of a configuration (object, or the dict of a config.json).

    Raises `CheckpointError` naming the model type found and those supported.
    """
    found = str(config.get("model_type") if isinstance(config, Mapping) else config.model_type)
    if found not in FAMILIES:
        stock = ", ".join(name for name in FAMILIES if not name.startswith(MERGED))
        raise CheckpointError(f"model type {found!r} is not supported; supported: {stock}")
    return FAMILIES[found]


def sparse_layers(config: Any) -> list[MoELayer]:
    """The sparse layers of a configuration, in order of the forward pass."""
    return family_of(config).layers(config)
