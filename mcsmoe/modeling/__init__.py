"""Importing this package lets transformers' Auto classes find the classes that are ours."""

from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from mcsmoe.model_types import FUSED
from mcsmoe.modeling.configuration_fsgpt_moe import FSGPTMoEConfig
from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
from mcsmoe.modeling.modeling_fsgpt_moe import FSGPTMoEForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_dbrx import MCSMoEDbrxForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_fsgpt import MCSMoEFSGPTMoEForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_fused import merged_model_class
from mcsmoe.modeling.modeling_mcsmoe_llama4 import MCSMoELlama4ForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration

__all__ = [
    "FSGPTMoEConfig",
    "FSGPTMoEForCausalLM",
    "MCSMoESwitchConfig",
    "MCSMoESwitchForConditionalGeneration",
]

CAUSAL: list[Any] = [
    FSGPTMoEForCausalLM,
    MCSMoEFSGPTMoEForCausalLM,
    MCSMoEDbrxForCausalLM,
    MCSMoELlama4ForCausalLM,
    *(merged_model_class(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]) for name in FUSED),
]
for model_class in CAUSAL:
    AutoConfig.register(model_class.config_class.model_type, model_class.config_class, exist_ok=True)
    AutoModelForCausalLM.register(model_class.config_class, model_class, exist_ok=True)
AutoConfig.register(MCSMoESwitchConfig.model_type, MCSMoESwitchConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(MCSMoESwitchConfig, MCSMoESwitchForConditionalGeneration, exist_ok=True)
