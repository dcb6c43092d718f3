"""Importing this package lets transformers' Auto classes find the classes that are ours."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mcsmoe.modeling.configuration_fsgpt_moe import FSGPTMoEConfig
from mcsmoe.modeling.configuration_mcsmoe_switch import MCSMoESwitchConfig
from mcsmoe.modeling.modeling_fsgpt_moe import FSGPTMoEForCausalLM
from mcsmoe.modeling.modeling_mcsmoe_switch import MCSMoESwitchForConditionalGeneration

__all__ = [
    "FSGPTMoEConfig",
    "FSGPTMoEForCausalLM",
    "MCSMoESwitchConfig",
    "MCSMoESwitchForConditionalGeneration",
]

AutoConfig.register(FSGPTMoEConfig.model_type, FSGPTMoEConfig, exist_ok=True)
AutoConfig.register(MCSMoESwitchConfig.model_type, MCSMoESwitchConfig, exist_ok=True)
AutoModelForCausalLM.register(FSGPTMoEConfig, FSGPTMoEForCausalLM, exist_ok=True)
AutoModelForSeq2SeqLM.register(MCSMoESwitchConfig, MCSMoESwitchForConditionalGeneration, exist_ok=True)
