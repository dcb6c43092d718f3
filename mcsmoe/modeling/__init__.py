"""Importing this package lets transformers' Auto classes find the classes that are ours."""

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
)

from mcsmoe.families import FUSED
from mcsmoe.modeling.configuration_fsgpt_moe import FSGPTMoEConfig
from mcsmoe.modeling.configuration_mcsmoe_fsgpt import MCSMoEFSGPTMoEConfig
from mcsmoe.modeling.configuration_mcsmoe_fused import merged_config_class
from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
from mcsmoe.modeling.modeling_fsgpt_moe import FSGPTMoEForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_fsgpt import MCSMoEFSGPTMoEForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_fused import merged_model_class
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration

__all__ = [
    "FSGPTMoEConfig",
    "FSGPTMoEForCausalLM",
    "MCSMoESwitchConfig",
    "MCSMoESwitchForConditionalGeneration",
]

AutoConfig.register(FSGPTMoEConfig.model_type, FSGPTMoEConfig, exist_ok=True)
AutoConfig.register(MCSMoEFSGPTMoEConfig.model_type, MCSMoEFSGPTMoEConfig, exist_ok=True)
AutoConfig.register(MCSMoESwitchConfig.model_type, MCSMoESwitchConfig, exist_ok=True)
AutoModelForCausalLM.register(FSGPTMoEConfig, FSGPTMoEForCausalLM, exist_ok=True)
AutoModelForCausalLM.register(MCSMoEFSGPTMoEConfig, MCSMoEFSGPTMoEForCausalLM, exist_ok=True)
AutoModelForSeq2SeqLM.register(MCSMoESwitchConfig, MCSMoESwitchForConditionalGeneration, exist_ok=True)
for model_type in FUSED:
    stock = CONFIG_MAPPING[model_type]
    config_class = merged_config_class(stock)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, merged_model_class(MODEL_FOR_CAUSAL_LM_MAPPING[stock]), exist_ok=True)
