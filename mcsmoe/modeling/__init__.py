"""Importing this package lets transformers' Auto classes find the classes that are ours.

They are made when a config.json first names their model type: making all of them takes half a second.
"""

from functools import cache
from importlib import import_module
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from mcsmoe.model_types import FUSED, MERGED

CAUSAL = "AutoModelForCausalLM"
OWN = {
    "fsgpt_moe": (CAUSAL, "modeling_fsgpt_moe", "FSGPTMoEForCausalLM"),
    "mcsmoe_fsgpt_moe": (CAUSAL, "modeling_mcsmoe_fsgpt", "MCSMoEFSGPTMoEForCausalLM"),
    "mcsmoe_dbrx": (CAUSAL, "modeling_mcsmoe_dbrx", "MCSMoEDbrxForCausalLM"),
    "mcsmoe_llama4_text": (CAUSAL, "modeling_mcsmoe_llama4", "MCSMoELlama4ForCausalLM"),
    "mcsmoe_switch": ("AutoModelForSeq2SeqLM", "modeling_mcsmoe_switch", "MCSMoESwitchForConditionalGeneration"),
}
"""Model type → the Auto class of its model class, its file and its name, where it has a file of its own."""


class Late(type):
    """Stands for the configuration class of `model_type`, and is replaced by it when anything is asked of it."""

    model_type: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _registered(cls.model_type)(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(_registered(cls.model_type), name)


@cache
def _registered(model_type: str) -> Any:
    """Make the classes of a model type and register them; returns that of its configuration."""
    if model_type in OWN:
        auto, module, name = OWN[model_type]
        model_class = getattr(import_module(f"{__name__}.{module}"), name)
    else:
        from mcsmoe.modeling.modeling_mcsmoe_fused import merged_model_class

        stock = CONFIG_MAPPING[model_type.removeprefix(MERGED)]
        auto, model_class = CAUSAL, merged_model_class(MODEL_FOR_CAUSAL_LM_MAPPING[stock])
    config_class = model_class.config_class
    AutoConfig.register(model_type, config_class, exist_ok=True)
    getattr(transformers, auto).register(config_class, model_class, exist_ok=True)
    return config_class


for each in (*OWN, *(f"{MERGED}{name}" for name in FUSED)):
    AutoConfig.register(each, Late(each, (), {"model_type": each, "__module__": __name__}), exist_ok=True)
