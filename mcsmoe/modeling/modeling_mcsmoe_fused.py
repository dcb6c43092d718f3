"""Causal language models with K merged experts a layer, an index map E → K, and low-rank plus sparse experts.

There is one class for each causal language model of transformers whose experts have its common interface, made when
its name is asked for: `MCSMoEMixtralForCausalLM` is `MixtralForCausalLM` with the sparse layers of its configuration.
This file travels beside the weights as remote code: it imports torch, transformers and the files beside it.
"""

from functools import cache
from typing import Any

import transformers
from torch import Tensor

from .aligned_mcsmoe import align_weights
from .configuration_mcsmoe_fused import PREFIX, merged_config_class
from .experts_mcsmoe import describe, install

KEPT_IN_FLOAT32 = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
"""Attributes of a model with patterns of names; transformers loads the tensors they match in float32."""


@cache
def merged_model_class(
    stock: type[transformers.PreTrainedModel], config: Any = None, module: str = __name__, install: Any = install
) -> type[transformers.PreTrainedModel]:
    """A subclass of the causal language model `stock` with the sparse layers of `config.moe_layers`.

    `config` is its configuration class, and `module` where it is found by its name, if it is none of transformers'.
    `install` makes a stock sparse layer hold merged experts.
    """

    class Merged(stock):
        config_class = config or merged_config_class(stock.config_class)

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in (config.moe_layers or {}).values():
                install(self.get_submodule(layer["path"]), layer)
            self.get_output_embeddings().register_forward_pre_hook(contiguous)
            for kind in KEPT_IN_FLOAT32:
                # ERNIE's "gate.weight" means the router, not the gate projection `experts.gate.weight`.
                setattr(self, kind, {rf"(?<!\.experts\.){pattern}" for pattern in getattr(self, kind)})

        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            """As in transformers, with the weights in aligned memory."""
            loaded = super().from_pretrained(*args, **kwargs)
            align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
            return loaded

        def sparse_mlps(self) -> dict[str, Any]:
            """The sparse layers by name ("decoder.1"), in order of the forward pass."""
            return {name: self.get_submodule(layer["path"]) for name, layer in self.config.moe_layers.items()}

        def update_config(self) -> None:
            """Make `config.moe_layers` tell what the modules hold, after they were replaced or units dropped."""
            self.config.moe_layers = {
                name: {key: self.config.moe_layers[name][key] for key in ("path", "router")} | describe(mlp.experts)
                for name, mlp in self.sparse_mlps().items()
            }

    Merged.__name__ = Merged.__qualname__ = PREFIX + stock.__name__
    Merged.__module__ = module
    Merged.register_for_auto_class("AutoModelForCausalLM")
    return Merged


def contiguous(head: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The input of the head in one piece.

    Generation slices the last positions [B, 1, d] out of [B, S, d], for which torch copies the head's weight B times.
    """
    return tuple(each.contiguous() for each in given)


def __getattr__(name: str) -> Any:
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return merged_model_class(stock)
