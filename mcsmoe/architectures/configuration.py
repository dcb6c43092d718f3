"""A config.json as a configuration object of transformers, or of ours."""

from collections.abc import Mapping
from typing import Any


def configuration(values: Mapping[str, Any]) -> Any:
    """The object that loading a checkpoint with this config.json would give.

    Raises `KeyError` for a model type that neither transformers nor this package has.
    """
    import transformers

    import mcsmoe.modeling  # noqa: F401 - registers the classes that are ours

    kind = transformers.CONFIG_MAPPING[values["model_type"]]
    # JSON has no infinity: transformers writes it as an object.
    return kind.from_dict(kind._decode_special_floats(dict(values)))
