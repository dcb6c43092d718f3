"""Configurations of causal language models whose experts were merged, and perhaps compressed, layer by layer.

There is one for each configuration class of transformers, made when its name is asked for: `MCSMoEMixtralConfig`
is `MixtralConfig` with sparse layers of its own. This file travels beside the weights as remote code.
"""

from functools import cache
from typing import Any

import transformers

PREFIX = "MCSMoE"


@cache
def merged_config_class(
    stock: type[transformers.PreTrainedConfig], module: str = __name__
) -> type[transformers.PreTrainedConfig]:
    """A subclass of `stock` with its own number of experts in every sparse layer (arXiv 2310.01334, §3).

    The count of experts in the configuration stays E, the rows of every router. `moe_layers` names the sparse
    layers and what they hold: `{"decoder.1": {"path": module, "router": its child, "experts": K}}` for dense
    experts. Where each weight is U V + S there stand, too, `"rank": r`, `"structure"` and `"kept": {weight: n}`,
    the units of S kept over all K experts. A list of numbers is a field that the stock class has under this name:
    its sparse layers. `module` is where the class is found by its name.
    """

    class Merged(stock):
        model_type = f"mcsmoe_{stock.model_type}"
        moe_layers: dict[str, Any] | list[int] | None = None

    Merged.__name__ = Merged.__qualname__ = PREFIX + stock.__name__
    Merged.__module__ = module
    Merged.register_for_auto_class()
    return Merged


def __getattr__(name: str) -> Any:
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return merged_config_class(stock)
