"""Families by `model_type`."""

from mcsmoe.architectures.layer import Family
from mcsmoe.registry import Registry

FAMILIES: Registry[Family] = Registry("model type", "mcsmoe.architectures")
