"""Layers that a user wants left as they are."""

from collections.abc import Sequence

from mcsmoe.architectures.layer import MoELayer
from mcsmoe.errors import ParameterError
from mcsmoe.params import Exclude


def excluded_layers(exclude: Exclude, layers: Sequence[MoELayer]) -> list[str]:
    """Names of the layers that stay untouched. Raises `ParameterError` for an index with no sparse layer."""
    names = []
    for stack in ("encoder", "decoder"):
        sparse = {layer.index: layer.name for layer in layers if layer.stack == stack}
        for index in getattr(exclude, stack):
            if index not in sparse:
                raise ParameterError(f"merge.exclude.{stack}", index, f"no sparse layer; sparse are {sorted(sparse)}")
            names.append(sparse[index])
    return names
